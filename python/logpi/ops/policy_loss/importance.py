"""What corrects for tokens that were sampled by another policy than the one before the update."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from logpi.core import checks
from logpi.ops.policy_loss.base import LOG_RATIO_BOUND

LEVELS = ("token", "sequence")
MODES = ("truncate", "mask")


@dataclass(frozen=True)
class RolloutImportance:
    """Weights v = exp(old_log_probs - rollout_log_probs) on the objective's loss, bounded.

    The sampler's kernels round otherwise than the trainer's: what was drawn came from another
    policy than the old one. Yao et al. 2025 (TIS), https://fengyao.notion.site/off-policy-rl. No
    gradient flows through v; the denominators of the loss stay, also where v is 0.

    Attributes:
        level: "token", or "sequence": a sequence's tokens all have the product of their v.
        mode: "truncate" brings v into [min, max]; "mask" makes it 0 where it lies outside.
        max, min: the bounds; 2 and none are usual.
    """

    level: str = "token"
    mode: str = "truncate"
    max: float = 2.0
    min: float = 0.0

    def __post_init__(self) -> None:
        for name, value, known in (("level", self.level, LEVELS), ("mode", self.mode, MODES)):
            if value not in known:
                raise ValueError(
                    f"RolloutImportance.{name}: expected {known[0]!r} or {known[1]!r}, "
                    f"got {value!r}"
                )
        checks.positive("RolloutImportance.max", self.max)
        checks.not_negative("RolloutImportance.min", self.min)
        if self.min > self.max:
            raise ValueError(
                f"RolloutImportance.min: expected at most max, {self.max}, got {self.min}"
            )

    def weights(
        self, old_log_probs: Tensor, rollout_log_probs: Tensor, loss_mask: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """v `[B, T]`, and what there is to tell of each token; finite outside the mask.

        rollout_ratio: v before the bounds. rollout_kl_k1, rollout_kl_k3: of KL(rollout, old).
        rollout_weight: v. rollout_clip_fraction: 1 where a bound has changed it.
        """
        each = (old_log_probs - rollout_log_probs).where(loss_mask, 0.0)
        log_v = each
        if self.level == "sequence":
            log_v = each.sum(-1, keepdim=True, dtype=torch.float64).to(each.dtype).expand_as(each)
        bound = LOG_RATIO_BOUND
        ratio = log_v.clamp(-bound, bound).exp()
        if self.mode == "truncate":
            v = ratio.clamp(self.min, self.max)
        else:
            v = ratio.masked_fill((ratio < self.min) | (ratio > self.max), 0.0)
        x = each.clamp(-bound, bound)
        told = {
            "rollout_ratio": ratio,
            "rollout_kl_k1": -x,
            "rollout_kl_k3": torch.expm1(x) - x,
            "rollout_weight": v,
            "rollout_clip_fraction": (v != ratio).to(ratio.dtype),
        }
        return v, told
