"""Objectives that treat the tokens of largest covariance otherwise (arXiv:2505.22617).

Which tokens these are depends on the whole batch and is asked beforehand; here it is a bool tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from logpi.core import checks
from logpi.ops.policy_loss.base import (
    Objective,
    Tokens,
    check_clip,
    clip_metrics,
    clipped,
    log_ratio,
    ratio_metrics,
)


class SelectingObjective(Objective):
    """With `selection`, a loss of each token alone; the selection is the batch's."""

    token_level = False
    depends_on = "which tokens of the whole batch are selected"
    paper = "arXiv:2505.22617"

    def token_losses(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, selection: Tensor
    ) -> Tensor:
        """`[..]`, differentiable in `log_probs`; all arguments are `[..]`, `selection` bool."""
        raise NotImplementedError

    def losses(self, log_probs: Tensor, tokens: Tokens) -> Tensor:
        assert tokens.selection is not None
        known = tokens.old_log_probs, tokens.advantages, tokens.selection
        return self.token_losses(log_probs, *known)


@dataclass(frozen=True)
class ClipCov(SelectingObjective):
    """PPOClip, and nothing of the selected tokens; they stay in the denominator.

    Cui et al. 2025 (arXiv:2505.22617). Selected are a few tokens at random among those whose
    covariance of advantage and log-prob is large and that the clip has left:

        objective = ClipCov()
        exclude = objective.clipped(log_probs, old_log_probs, advantages)
        selection = clip_cov_mask(log_probs, advantages, loss_mask, exclude=exclude)

    Attributes:
        clip_ratio_low, clip_ratio_high: distances from 1; 1 and 1 in the authors' runs.
    """

    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.2

    stabilization_mask = "0 where PPOClip's is, and where selected"
    fractions = ("clip_fraction_low", "clip_fraction_high", "selected_fraction")
    selected_by = "clip_cov_mask"

    def __post_init__(self) -> None:
        check_clip(self, self.clip_ratio_low, self.clip_ratio_high)

    def clipped(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        """`[B, T]` bool: tokens whose gradient the clip has taken; `exclude` of `clip_cov_mask`.

        Args:
            log_probs, old_log_probs: `[B, T]`.
            advantages: `[B, T]`, or `[B]`, one a sequence.
        """
        if advantages.dim() < log_probs.dim():
            advantages = advantages.unsqueeze(-1)
        ratio = log_ratio(log_probs.detach(), old_log_probs).exp()
        below = (ratio < 1 - self.clip_ratio_low) & (advantages < 0)
        return below | ((ratio > 1 + self.clip_ratio_high) & (advantages > 0))

    def token_losses(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, selection: Tensor
    ) -> Tensor:
        ratio = log_ratio(log_probs, old_log_probs).exp()
        losses = clipped(ratio, advantages, self.clip_ratio_low, self.clip_ratio_high)
        return losses.masked_fill(selection, 0.0)

    def told(self, log_probs: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        assert tokens.selection is not None
        told = ratio_metrics(log_probs, tokens.old_log_probs)
        bounds = self.clip_ratio_low, self.clip_ratio_high
        told |= clip_metrics(told["ratio"], tokens.advantages, *bounds)
        return told | {"selected_fraction": tokens.selection.to(log_probs.dtype)}


@dataclass(frozen=True)
class KLCov(SelectingObjective):
    """-A r, and coef * |log_probs - old_log_probs| on the selected tokens; no clip.

    Cui et al. 2025 (arXiv:2505.22617). On the first step after a rollout all log-ratios are 0, and
    so is the penalty's gradient, whatever its coefficient.

    Attributes:
        coef: of the penalty; the paper's is 1.
    """

    coef: float = 1.0

    stabilization_mask = "1; where selected, minus coef sign(log r) / (A r)"
    zero_at_zero_advantage = False
    fractions = ("selected_fraction",)
    selected_by = "kl_cov_mask"

    def __post_init__(self) -> None:
        checks.not_negative("KLCov.coef", self.coef)

    def token_losses(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, selection: Tensor
    ) -> Tensor:
        penalty = self.coef * (log_probs - old_log_probs).abs()
        losses = -advantages * log_ratio(log_probs, old_log_probs).exp()
        return losses + penalty.where(selection, 0.0)

    def told(self, log_probs: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        assert tokens.selection is not None
        told = ratio_metrics(log_probs, tokens.old_log_probs)
        return told | {"selected_fraction": tokens.selection.to(log_probs.dtype)}
