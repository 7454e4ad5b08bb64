"""What a compiler makes of sample_tokens: one graph, the same bits, torch's rules kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from logpi import KeepSet, sample_tokens, token_log_probs
from logpi.ops.token_sampling.op import check_call
from logpi.testing import bits
from sampling_problems import TRUNCATIONS, logits


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_one_graph_with_the_bits_of_eager(backend: str) -> None:
    def run(z: Tensor, step: Tensor, top_p: Tensor) -> Any:
        drawn = sample_tokens(
            z, temperature=0.7, top_k=40, top_p=top_p, seed=1, step=step, return_entropy=True,
            return_keep=True, backend=backend,
        )  # fmt: skip
        trained = token_log_probs(z, drawn.token_ids, temperature=0.7, support=drawn.keep)
        return *drawn[:3], trained.log_probs

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for step in (0, 1):
        arguments = logits(5, 300), torch.tensor(step), torch.full((5,), 0.8)
        for one, other in zip(compiled(*arguments), run(*arguments), strict=True):
            assert torch.equal(bits(one), bits(other))


def test_a_kept_set_of_a_static_size() -> None:
    """Compiled, the indices have the size of the most that could be kept, as on a GPU."""

    def run(z: Tensor, backend: str) -> KeepSet:
        options = {"top_k": 20, "top_p": 0.9, "return_keep": True, "backend": backend}
        keep = sample_tokens(z, seed=0, step=0, **options).keep
        assert keep is not None
        return keep

    z = logits(4, 300)
    eager = run(z, "cpu")
    for backend in ("cpu", "torch"):
        keep = torch.compile(run, backend="aot_eager", fullgraph=True)(z, backend)
        assert len(keep.indices) == 4 * 20
        assert torch.equal(keep.indptr, eager.indptr)
        assert torch.equal(keep.indices[: len(eager.indices)], eager.indices)
        keep.check(300)


@pytest.mark.parametrize("truncation", ["none", "top_k", "all"])
def test_registered_op_keeps_torchs_rules(truncation: str) -> None:
    from logpi.ops.token_sampling import _library  # noqa: F401  registers it

    options = {"top_k": None, "top_p": None, "min_p": None} | TRUNCATIONS[truncation]
    if truncation == "top_k":
        options["top_k"] = 10**6  # all are kept: no index is spare, and unwritten
    call = check_call(
        logits(3, 40), 1.0, *options.values(), 1, torch.tensor(2), None, False, None, True,
        truncation == "top_k",
    )  # fmt: skip
    torch.library.opcheck(torch.ops.logpi.sample_tokens.default, ("cpu", *call))
