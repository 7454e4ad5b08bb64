"""Objectives of which a token's gradient depends on its whole sequence: `[B, T]`, not `[N]`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from logpi.core import checks
from logpi.ops.policy_loss.base import (
    Objective,
    Tokens,
    check_clip,
    clip_metrics,
    clipped,
    ratio_metrics,
)

_LOG_RATIO_BOUND = 10.0


class SequenceObjective(Objective):
    """Means run over the tokens of the mask, bool `[B, T]`."""

    token_level = False
    depends_on = "its whole sequence"

    def token_losses(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, loss_mask: Tensor
    ) -> Tensor:
        """`[B, T]`, all of them."""
        raise NotImplementedError

    def losses(self, log_probs: Tensor, tokens: Tokens) -> Tensor:
        known = tokens.old_log_probs, tokens.advantages, tokens.mask
        return self.token_losses(log_probs, *known)


@dataclass(frozen=True)
class GSPO(SequenceObjective):
    """PPOClip on the ratio of the whole sequence, s = exp(mean of log_probs - old_log_probs).

    Zheng et al. 2025 (arXiv:2507.18071), the token form: s * exp(log_probs - sg(log_probs)); the
    authors aggregate by "seq-mean-token-mean".

    Attributes:
        clip_ratio_low, clip_ratio_high: distances of s from 1; the authors' are 3e-4 and 4e-4.
    """

    clip_ratio_low: float = 3e-4
    clip_ratio_high: float = 4e-4

    stabilization_mask = "0 where A > 0 and s > 1 + high, or A < 0 and s < 1 - low"
    reference_denominator = "π (π_old(sequence) / π(sequence))^(1 / length)"
    paper = "arXiv:2507.18071"
    fractions = ("clip_fraction_low", "clip_fraction_high")

    def __post_init__(self) -> None:
        check_clip(self, self.clip_ratio_low, self.clip_ratio_high)

    def token_losses(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, loss_mask: Tensor
    ) -> Tensor:
        """`[B, T]`; means run over the tokens of `loss_mask`, bool `[B, T]`."""
        ratio = self._ratio(log_probs, old_log_probs, loss_mask)
        return clipped(ratio, advantages, self.clip_ratio_low, self.clip_ratio_high)

    def _ratio(self, log_probs: Tensor, old_log_probs: Tensor, loss_mask: Tensor) -> Tensor:
        mean = mean_of((log_probs - old_log_probs).detach(), loss_mask)
        return (log_probs - log_probs.detach() + mean).clamp(max=_LOG_RATIO_BOUND).exp()

    def told(self, log_probs: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        """As of a token-level objective, with s as its ratio."""
        told = ratio_metrics(log_probs, tokens.old_log_probs)
        told["ratio"] = self._ratio(log_probs, tokens.old_log_probs, tokens.mask)
        bounds = self.clip_ratio_low, self.clip_ratio_high
        return told | clip_metrics(told["ratio"], tokens.advantages, *bounds)


@dataclass(frozen=True)
class GMPO(SequenceObjective):
    """-mean A * exp(mean of clipped log-ratios): the geometric mean of a sequence's ratios.

    Zhao et al. 2025 (arXiv:2507.20673). A token's log-ratio is clipped on the side that its
    advantage pushes it to: above where A > 0, below where A < 0. Every token of a sequence has the
    loss of the sequence, so that "seq-mean-token-mean" is the authors' mean over sequences.

    Attributes:
        clip_log_ratio_low, clip_log_ratio_high: distances from 0, of the log-ratio.
    """

    clip_log_ratio_low: float = 0.4
    clip_log_ratio_high: float = 0.4

    stabilization_mask = "0 where A > 0 and log r > high, or A < 0 and log r < -low"
    reference_denominator = "π / (geometric mean of the sequence's clipped ratios)"
    advantage = "mean of A over the sequence"
    paper = "arXiv:2507.20673"
    fractions = ("clip_fraction_low", "clip_fraction_high")

    def __post_init__(self) -> None:
        checks.not_negative("GMPO.clip_log_ratio_low", self.clip_log_ratio_low)
        checks.not_negative("GMPO.clip_log_ratio_high", self.clip_log_ratio_high)

    def token_losses(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, loss_mask: Tensor
    ) -> Tensor:
        """`[B, T]`; means run over the tokens of `loss_mask`, bool `[B, T]`."""
        ratio = self._ratio(log_probs, old_log_probs, advantages, loss_mask)
        return (-mean_of(advantages, loss_mask) * ratio).expand_as(loss_mask)

    def _ratio(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, loss_mask: Tensor
    ) -> Tensor:
        """`[B, 1]`."""
        sign, log_r = advantages.sign(), log_probs - old_log_probs
        bound = log_r.clamp(-self.clip_log_ratio_low, self.clip_log_ratio_high)
        log_r = sign * torch.minimum(sign * log_r, sign * bound)
        return mean_of(log_r, loss_mask).exp()

    def told(self, log_probs: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        """As of a token-level objective, with the geometric mean as its ratio."""
        told = ratio_metrics(log_probs, tokens.old_log_probs)
        known = tokens.old_log_probs, tokens.advantages, tokens.mask
        told["ratio"] = self._ratio(log_probs, *known).expand_as(tokens.mask)
        log_r, sign = log_probs - tokens.old_log_probs, tokens.advantages
        below, above = log_r < -self.clip_log_ratio_low, log_r > self.clip_log_ratio_high
        told["clip_fraction_low"] = (below & (sign < 0)).to(log_r.dtype)
        told["clip_fraction_high"] = (above & (sign > 0)).to(log_r.dtype)
        return told


def mean_of(values: Tensor, loss_mask: Tensor) -> Tensor:
    """`[B, 1]`, over the tokens of each sequence; 0 where it has none."""
    count = loss_mask.sum(-1, keepdim=True).clamp(min=1)
    return values.where(loss_mask, 0.0).sum(-1, keepdim=True) / count
