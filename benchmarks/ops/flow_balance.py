"""flow_balance_loss beside the eager code of FlowRL: loss, nine metrics and both gradients.

A shape is [B, T]. Everyone has the same bool mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.harness import Group
from benchmarks.ops import _losses
from benchmarks.ops._losses import DTYPES, QUICK, SHAPES
from benchmarks.shapes import Shape
from logpi import flow_balance_loss
from logpi.ops.flow_balance.op import BACKENDS, check_call

__all__ = ["DTYPES", "QUICK", "SHAPES", "TARGETS", "Case", "groups"]


class Case(_losses.Case):
    """`inputs`: log_probs, ref, old, rewards, log_z, loss_mask."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> None:
        def given(log_probs: Tensor, normal: _losses.Normal) -> tuple[Tensor, ...]:
            rows = len(log_probs)
            ref = log_probs + 0.1 * normal(*log_probs.shape)
            old = log_probs + 1e-3 * normal(*log_probs.shape)
            return log_probs, ref, old, normal(rows), normal(rows)

        super().__init__(shape, dtype, device, seed, given, (0, 4), flow_balance_loss)


def groups(case: Case) -> list[Group]:
    call = check_call(*case.inputs, 15.0, 10.0, None, None, None)
    return _losses.groups(case, BACKENDS, lambda row: row.refusal(call), "FlowRL", flowrl)


# ---- what FlowRL does, in our words -------------------------------------------------------------


def _sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    return (torch.where(mask, values, 0.0) * mask).sum(dim)  # both, as verl does


def _mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    return _sum(values, mask, dim) / (mask.sum(dim) + 1e-8)


def flowrl(
    log_probs: Tensor, ref: Tensor, old: Tensor, rewards: Tensor, log_z: Tensor, mask: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Three masked means, a masked sum, the loss; and the nine metrics, not yet read."""
    advantages = rewards[:, None].expand_as(log_probs)  # along the tokens, as its trainer has them
    reward = _mean(advantages, mask, -1)
    delta = log_z + _mean(log_probs, mask, -1) - 15 * reward - _mean(ref, mask, -1)
    weight = _sum(log_probs - old, mask, -1).exp().detach().clamp(max=10)
    loss = (weight * delta**2).mean()
    told = (
        _mean(log_probs, mask),  # log_prob
        _mean(old, mask),  # old_log_prob
        _mean(ref, mask),  # ref_log_prob
        log_z.mean(),  # log_z
        _mean(advantages, mask),  # log_reward
        loss,  # final_loss
        weight.mean(),  # importance_weight
        _mean(old - log_probs, mask),  # ppo_kl
        _mean(ref - log_probs, mask),  # ref_kl
    )
    return loss, told


TARGETS = _losses.targets("FlowRL", 10.0, us_in_a_graph=12.0)
