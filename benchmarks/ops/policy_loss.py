"""policy_loss beside the eager code of verl: PPO's dual clip with its metrics, and the gradient.

A shape is [B, T]. verl has three metrics, ours are seven. Everyone has the same bool mask.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Group
from benchmarks.ops import _losses
from benchmarks.ops._losses import DTYPES, QUICK, SHAPES
from benchmarks.shapes import Shape
from logpi import policy_loss
from logpi.objectives import DualClip
from logpi.ops.policy_loss import BACKENDS

__all__ = ["DTYPES", "QUICK", "SHAPES", "TARGETS", "Case", "groups"]

LOW, HIGH, C = 0.2, 0.28, 3.0


class Case(_losses.Case):
    """`inputs`: log_probs, old_log_probs, advantages, loss_mask; some updates after the rollout."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> None:
        def given(log_probs: Tensor, normal: _losses.Normal) -> tuple[Tensor, ...]:
            old = log_probs + 0.1 * normal(*log_probs.shape)
            advantages = normal(len(log_probs), 1).expand_as(log_probs).contiguous()
            return log_probs, old, advantages  # one a token, as trainers have them

        op = partial(policy_loss, objective=DualClip(LOW, HIGH, C))
        super().__init__(shape, dtype, device, seed, given, (0,), op)


def groups(case: Case) -> list[Group]:
    def refusal(row: Any) -> str | None:
        on_gpu = case.inputs[0].is_cuda
        misplaced = "needs log_probs on a CPU" if on_gpu and row.name == "cpu" else None
        return row.unavailable() or misplaced  # type: ignore[no-any-return]

    return _losses.groups(case, BACKENDS, refusal, "verl", verl)


# ---- what verl does, in our words ---------------------------------------------------------------


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / (mask.sum() + 1e-8)


def verl(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The plain loss, dual clip and token mean; and its three metrics, not yet read."""
    log_ratio = torch.clamp(log_probs - old_log_probs, min=-20.0, max=20.0)
    ratio = torch.exp(log_ratio)
    kl = _mean(-log_ratio, mask)
    free = -advantages * ratio
    bound = -advantages * torch.clamp(ratio, 1 - LOW, 1 + HIGH)
    clipped = torch.maximum(free, bound)
    fraction = _mean(torch.gt(bound, free).float(), mask)
    most = -advantages * C
    dual = torch.min(most, clipped)
    lower = _mean(torch.gt(clipped, most) * (advantages < 0).float(), mask)
    losses = torch.where(advantages < 0, dual, clipped)
    return _mean(losses, mask), (fraction, kl, lower)


TARGETS = _losses.targets("verl", 3.0, us_in_a_graph=10.0)
