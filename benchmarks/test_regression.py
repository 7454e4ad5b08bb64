"""Small timings of our rows for comparing two commits: `pytest benchmarks --benchmark-only`.

Peers and shapes that matter are `benchmarks/run.py`'s business; these notice that something slowed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from logpi import linear_log_probs, token_log_probs

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


def _head(dtype: torch.dtype, size: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, size, generator=random) for n in (ROWS, VOCAB))
    ids = torch.randint(VOCAB, (ROWS,), generator=random)
    return hidden.to(dtype), (weight / 4).to(dtype), ids


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_forward(benchmark: Callable[..., object], dtype: torch.dtype) -> None:
    benchmark(linear_log_probs, *_head(dtype), return_entropy=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("retain_bytes", [0, 1 << 30], ids=["recompute", "retain"])
def test_linear_training(
    benchmark: Callable[..., object], dtype: torch.dtype, retain_bytes: int
) -> None:
    hidden, weight, ids = _head(dtype)
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    grads = torch.randn(2, ROWS, generator=torch.Generator().manual_seed(1))

    def train() -> tuple[Tensor, ...]:
        out = linear_log_probs(*leaves, ids, return_entropy=True, retain_bytes=retain_bytes)
        return torch.autograd.grad(out[:2], leaves, tuple(grads))

    benchmark.pedantic(train, rounds=20, warmup_rounds=2)


@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "with grad"])
def test_call(benchmark: Callable[..., object], grad: bool) -> None:
    logits, ids = _inputs(torch.float32, 1, 32)
    benchmark(token_log_probs, logits.requires_grad_(grad), ids, return_entropy=True)
