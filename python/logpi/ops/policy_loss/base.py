"""What every objective is, and what is known of the tokens it is asked about."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from logpi.core import checks

# A log-ratio is clamped before the exponential, as the trainers do whose losses these are: e^20 is
# still a float32 whose products are finite. Outside the clamp no gradient flows.
LOG_RATIO_BOUND = 20.0


class Tokens(NamedTuple):
    """What is known of tokens beforehand, each `[N]` or each `[B, T]`; finite outside the mask."""

    old_log_probs: Tensor
    advantages: Tensor
    ref_log_probs: Tensor | None
    weights: Tensor
    mask: Tensor  # bool
    policy_weights: Tensor | None = None  # of the objective; None: `weights`
    selection: Tensor | None = None  # bool


class Objective:
    """The common base.

    Attributes:
        token_level: whether a token's loss depends on that token alone.
        depends_on: what else it depends on.
        stabilization_mask, reference_denominator, advantage, likelihood_gradient: the four parts.
        paper: where it is from.
        zero_at_zero_advantage: whether a token of advantage 0 has neither loss nor gradient.
        fractions: the metrics that count tokens.
        selected_by: the function whose result it needs as `selection`; "": none.
    """

    token_level: ClassVar[bool]
    depends_on: ClassVar[str] = "that token alone"
    stabilization_mask: ClassVar[str] = "1"
    reference_denominator: ClassVar[str] = "π_old"
    advantage: ClassVar[str] = "A, as given"
    likelihood_gradient: ClassVar[str] = "∇π"
    paper: ClassVar[str] = ""
    zero_at_zero_advantage: ClassVar[bool] = True
    fractions: ClassVar[tuple[str, ...]] = ()
    selected_by: ClassVar[str] = ""

    def losses(self, log_probs: Tensor, tokens: Tokens) -> Tensor:
        """Of each token, differentiable in `log_probs`; finite outside the mask."""
        raise NotImplementedError

    def told(self, log_probs: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        """What the objective has to tell of each token, by name; its mean is the metric."""
        raise NotImplementedError


class TokenObjective(Objective):
    """An objective whose token losses depend on their own token alone.

    Where the advantage is 0 the loss and its gradient are 0, whatever the ratio, unless
    `zero_at_zero_advantage` says otherwise.
    """

    token_level = True

    def token_losses(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        """`[..]`, differentiable in `log_probs`; all three arguments are `[..]`."""
        raise NotImplementedError

    def token_metrics(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor
    ) -> dict[str, Tensor]:
        """What the objective has to tell of each token, `[..]` by name; its mean is the metric.

        ratio: r. approx_kl_k1: -log r. approx_kl_k3: r - 1 - log r. Of KL(old, new), if the tokens
        were drawn from old. clip_fraction_*: 1 where a clip has taken the gradient or part of it.
        """
        return ratio_metrics(log_probs, old_log_probs)

    def losses(self, log_probs: Tensor, tokens: Tokens) -> Tensor:
        return self.token_losses(log_probs, tokens.old_log_probs, tokens.advantages)

    def told(self, log_probs: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        return self.token_metrics(log_probs, tokens.old_log_probs, tokens.advantages)


def ratio_metrics(log_probs: Tensor, old_log_probs: Tensor) -> dict[str, Tensor]:
    log_r = log_ratio(log_probs, old_log_probs)
    return {
        "ratio": log_r.exp(),
        "approx_kl_k1": -log_r,
        "approx_kl_k3": torch.expm1(log_r) - log_r,
    }


def log_ratio(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    return (log_probs - old_log_probs).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def clipped(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """max(-A r, -A clamp(r, 1 - low, 1 + high))."""
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high))


def clip_metrics(ratio: Tensor, advantages: Tensor, low: float, high: float) -> dict[str, Tensor]:
    """Where that maximum has no gradient, below and above."""
    below, above = (ratio < 1 - low) & (advantages < 0), (ratio > 1 + high) & (advantages > 0)
    return {
        "clip_fraction_low": below.to(ratio.dtype),
        "clip_fraction_high": above.to(ratio.dtype),
    }


def check_clip(objective: Objective, low: float, high: float) -> None:
    name = type(objective).__name__
    checks.not_negative(f"{name}.clip_ratio_low", low)
    checks.not_negative(f"{name}.clip_ratio_high", high)
