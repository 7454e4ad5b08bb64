"""Problems of flow_balance_loss, and a call of it as loss, metrics and gradients by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from logpi import flow_balance_loss
from logpi.testing import assert_all_within_budget, nan_empty

if TYPE_CHECKING:
    from rows import Row

Problem = dict[str, Any]
B, T = 5, 67  # a tail after whole vectors of every width
ARGUMENTS = ("log_probs", "ref_log_probs", "old_log_probs", "rewards", "log_z", "loss_mask")
LEAVES = ("log_probs", "log_z")


def problem(seed: int = 0, rows: int = B, columns: int = T, drift: float = 0.1) -> Problem:
    """Sequences of any length, the last without a token. `drift`: of the policy since its old self,
    a token; beyond 0.3 most weights meet a bound."""
    g = torch.Generator().manual_seed(seed)
    log_probs = -torch.rand(rows, columns, generator=g).mul(20).square() / 40
    mask = torch.rand(rows, columns, generator=g) < torch.rand(rows, 1, generator=g)
    if rows > 1:
        mask[0], mask[-1] = True, False
    return {
        "log_probs": log_probs,
        "ref_log_probs": log_probs + torch.randn(rows, columns, generator=g),
        "old_log_probs": log_probs + drift * torch.randn(rows, columns, generator=g),
        "rewards": torch.randn(rows, generator=g),
        "log_z": torch.randn(rows, generator=g),
        "loss_mask": mask,
    }


def call(p: Problem, **options: Any) -> Any:
    return flow_balance_loss(*(p[name] for name in ARGUMENTS), **options)


def evaluate(p: Problem, backend: str, upstream: float = 0.7, **options: Any) -> dict[str, Tensor]:
    """Loss, metrics, and the gradients under an upstream one."""
    leaves = {name: p[name].detach().requires_grad_() for name in LEAVES}
    loss, metrics = call(p | leaves, backend=backend, **options)
    loss.backward(torch.tensor(upstream, dtype=loss.dtype))
    grads = {f"gradient of {name}": leaf.grad for name, leaf in leaves.items()}
    return {"loss": loss.detach(), **metrics, **grads}


def in_float64(p: Problem) -> Problem:
    return {k: v.double() if v.is_floating_point() else v for k, v in p.items()}


def check(p: Problem, row: Row, **options: Any) -> dict[str, Tensor]:
    """Within the budget: loss, every metric and every gradient."""
    with nan_empty():
        ours = evaluate(p, row.backend, **options)
    yardstick = evaluate(p, "torch", **options)
    assert_all_within_budget(ours, yardstick, evaluate(in_float64(p), "torch", **options))
    return ours
