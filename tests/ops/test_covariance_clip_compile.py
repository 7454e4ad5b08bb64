"""What a compiler makes of the covariance rules: one graph, the same bits, torch's rules kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from covariance_problems import problem
from logpi import clip_cov_mask, covariances, kl_cov_mask

if TYPE_CHECKING:
    from rows import Row


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def all_of_them(row: str) -> Any:
    def op(log_probs: Tensor, advantages: Tensor, mask: Tensor, step: Tensor) -> Any:
        args = (log_probs, advantages, mask)
        clip = clip_cov_mask(*args, fraction=0.02, lower=0.1, seed=3, step=step, backend=row)
        losses = (log_probs * advantages).where(mask & ~clip, 0.0)
        return losses.sum(), kl_cov_mask(*args, backend=row), covariances(*args, backend=row)

    return op


def test_one_graph_with_the_bits_of_eager(kernel_row: Row) -> None:
    if kernel_row.isa is not None:
        pytest.skip("the compiled graph calls the same op whatever the ISA")
    log_probs, advantages, mask, _ = problem(300)
    log_probs.requires_grad_()
    op = all_of_them(kernel_row.backend)
    compiled = torch.compile(op, backend="aot_eager", fullgraph=True)
    for step in (0, 1):
        args = (log_probs, advantages, mask, torch.tensor(step))
        eager, ours = op(*args), compiled(*args)
        for one, other in zip(eager, ours, strict=True):
            assert torch.equal(one, other)
        grads = [torch.autograd.grad(out[0], log_probs)[0] for out in (eager, ours)]
        assert torch.equal(*grads)


def test_registered_op_keeps_torchs_rules() -> None:
    from logpi.ops.covariance_clip import _library  # noqa: F401
    from logpi.ops.covariance_clip.op import CLIP, COVARIANCES, KL, check_call

    tensors = problem(300)
    for rule in (COVARIANCES, CLIP, KL):
        call = check_call(rule, *tensors, fraction=0.01, step=torch.tensor(2))
        torch.library.opcheck(torch.ops.logpi.covariance_clip.default, ("cpu", *call[:-1]))


def test_compiled_refuses_ranks() -> None:
    def run(log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        return kl_cov_mask(log_probs, advantages, mask, process_group="ranks", backend="cpu")

    with pytest.raises(Exception, match="process_group: expected None under"):
        torch.compile(run, backend="aot_eager", fullgraph=True)(*problem(30)[:3])
