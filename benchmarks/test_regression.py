"""Small timings of our rows for comparing two commits: `pytest benchmarks --benchmark-only`.

Peers and shapes that matter are `benchmarks/run.py`'s business; these notice that something slowed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from logpi import token_log_probs

DTYPES = (torch.float32, torch.bfloat16)
ROWS, VOCAB = 64, 32064


def _inputs(dtype: torch.dtype, rows: int = ROWS, vocab: int = VOCAB) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, vocab, generator=random) * 4
    return logits.to(dtype), torch.randint(vocab, (rows,), generator=random)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward(benchmark: Callable[..., object], dtype: torch.dtype) -> None:
    logits, ids = _inputs(dtype)
    benchmark(token_log_probs, logits, ids, return_entropy=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inplace", [False, True], ids=["fresh", "in place"])
def test_backward(benchmark: Callable[..., object], dtype: torch.dtype, inplace: bool) -> None:
    logits, ids = _inputs(dtype)
    scratch = logits.clone()
    grads = torch.randn(2, ROWS, generator=torch.Generator().manual_seed(1))

    def restore() -> None:
        scratch.copy_(logits)

    def train() -> Tensor:
        leaf = scratch.detach().requires_grad_()
        out = token_log_probs(leaf, ids, return_entropy=True, inplace_backward=inplace)
        return torch.autograd.grad(out[:2], leaf, tuple(grads))[0]

    benchmark.pedantic(train, setup=restore, rounds=50, warmup_rounds=3)


@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "with grad"])
def test_call(benchmark: Callable[..., object], grad: bool) -> None:
    logits, ids = _inputs(torch.float32, 1, 32)
    benchmark(token_log_probs, logits.requires_grad_(grad), ids, return_entropy=True)
