"""What a token contributes to the loss: objectives as frozen dataclasses; no knob is dead.

    r = exp(clamp(log_probs - old_log_probs, -20, 20))

Every objective is an instance of the unified policy gradient estimator (arXiv:2509.04419),

    gradient = stabilization mask * (1 / reference denominator) * advantage * likelihood gradient

and says in four class attributes what its parts are. With ∇π = π ∇log π each is a weight on
∇log π; for a token-level objective, as are all of these, it depends on that token alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from logpi.core import checks
from logpi.ops.policy_loss.base import (
    TokenObjective,
    check_clip,
    clip_metrics,
    clipped,
    log_ratio,
    ratio_metrics,
)


@dataclass(frozen=True)
class PPOClip(TokenObjective):
    """max(-A r, -A clamp(r, 1 - clip_ratio_low, 1 + clip_ratio_high)).

    Schulman et al. 2017 (arXiv:1707.06347), eq. 7. GRPO and DAPO differ in advantages,
    aggregation and the high side (DAPO: 0.28).

    Attributes:
        clip_ratio_low, clip_ratio_high: distances from 1.
    """

    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.2

    stabilization_mask = "0 where A > 0 and r > 1 + high, or A < 0 and r < 1 - low"
    paper = "arXiv:1707.06347"
    fractions: ClassVar[tuple[str, ...]] = ("clip_fraction_low", "clip_fraction_high")

    def __post_init__(self) -> None:
        check_clip(self, self.clip_ratio_low, self.clip_ratio_high)

    def token_losses(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        ratio = log_ratio(log_probs, old_log_probs).exp()
        return clipped(ratio, advantages, self.clip_ratio_low, self.clip_ratio_high)

    def token_metrics(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor
    ) -> dict[str, Tensor]:
        metrics = ratio_metrics(log_probs, old_log_probs)
        bounds = self.clip_ratio_low, self.clip_ratio_high
        return metrics | clip_metrics(metrics["ratio"], advantages, *bounds)


@dataclass(frozen=True)
class DualClip(PPOClip):
    """PPOClip, and where A < 0 at most -A clip_ratio_c.

    Ye et al. 2020 (arXiv:1912.09729): a token of negative advantage that has become far
    more likely cannot dominate the batch.

    Attributes:
        clip_ratio_c: the largest ratio that a negative advantage is multiplied by; above 1.
    """

    clip_ratio_c: float = 3.0

    stabilization_mask = PPOClip.stabilization_mask + ", or A < 0 and r > c"
    paper = "arXiv:1912.09729"
    fractions: ClassVar[tuple[str, ...]] = (*PPOClip.fractions, "clip_fraction_dual")

    def __post_init__(self) -> None:
        super().__post_init__()
        _above_one("DualClip.clip_ratio_c", self.clip_ratio_c)

    def token_losses(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        losses = super().token_losses(log_probs, old_log_probs, advantages)
        return torch.where(
            advantages < 0, torch.minimum(losses, -advantages * self.clip_ratio_c), losses
        )

    def token_metrics(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor
    ) -> dict[str, Tensor]:
        metrics = super().token_metrics(log_probs, old_log_probs, advantages)
        dropped = (metrics["ratio"] > self.clip_ratio_c) & (advantages < 0)
        metrics["clip_fraction_dual"] = dropped.to(log_probs.dtype)
        return metrics


@dataclass(frozen=True)
class CISPO(TokenObjective):
    """-A log_probs sg(clamp(r, 1 - clip_ratio_low, 1 + clip_ratio_high)); sg stops the gradient.

    MiniMax 2025 (arXiv:2506.13585): every token keeps a gradient; its weight is bounded.

    Attributes:
        clip_ratio_low: distance from 1; 1 or more sets no lower bound, as in the paper.
        clip_ratio_high: distance from 1.
    """

    clip_ratio_low: float = 1.0
    clip_ratio_high: float = 0.2

    stabilization_mask = "clamp(r, 1 - low, 1 + high) / r"
    paper = "arXiv:2506.13585"
    fractions = ("clip_fraction_low", "clip_fraction_high")

    def __post_init__(self) -> None:
        check_clip(self, self.clip_ratio_low, self.clip_ratio_high)

    def token_losses(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        ratio = log_ratio(log_probs, old_log_probs).exp().detach()
        weight = ratio.clamp(1 - self.clip_ratio_low, 1 + self.clip_ratio_high)
        return -advantages * weight * log_probs

    def token_metrics(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor
    ) -> dict[str, Tensor]:
        metrics = super().token_metrics(log_probs, old_log_probs, advantages)
        ratio, dtype = metrics["ratio"], log_probs.dtype
        metrics["clip_fraction_low"] = (ratio < 1 - self.clip_ratio_low).to(dtype)
        metrics["clip_fraction_high"] = (ratio > 1 + self.clip_ratio_high).to(dtype)
        return metrics


@dataclass(frozen=True)
class SAPO(TokenObjective):
    """-A (4 / tau) sigmoid(tau (r - 1)): a gate that closes smoothly as r leaves 1.

    Gao et al. 2025 (arXiv:2511.20347). The gradient's weight on A r is 1 at r = 1.

    Attributes:
        tau_positive, tau_negative: tau where A > 0, and elsewhere; larger closes faster.
    """

    tau_positive: float = 1.0
    tau_negative: float = 1.05

    stabilization_mask = "4 σ(τ (r - 1)) σ(τ (1 - r))"
    paper = "arXiv:2511.20347"

    def __post_init__(self) -> None:
        checks.positive("SAPO.tau_positive", self.tau_positive)
        checks.positive("SAPO.tau_negative", self.tau_negative)

    def token_losses(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        ratio = log_ratio(log_probs, old_log_probs).exp()
        tau = torch.full_like(ratio, self.tau_negative)  # where() would round both to float32
        tau = tau.masked_fill(advantages > 0, self.tau_positive)
        return -advantages * torch.sigmoid(tau * (ratio - 1)) * (4 / tau)


class _DPPO(TokenObjective):
    """-A log_probs sg(min(r, ratio_max)) where the token may move on; nothing where it has moved
    too far in the direction of its advantage."""

    ratio_max: float
    paper = "arXiv:2602.04879"
    fractions = ("clip_fraction_low", "clip_fraction_high")

    def _stopped(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Bool: below, where A <= 0; above, where A > 0."""
        raise NotImplementedError

    def token_losses(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        below, above = self._stopped(log_probs.detach(), old_log_probs, advantages)
        weight = log_ratio(log_probs, old_log_probs).exp().detach().clamp(max=self.ratio_max)
        return (-advantages * weight * log_probs).masked_fill(below | above, 0.0)

    def token_metrics(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor
    ) -> dict[str, Tensor]:
        below, above = self._stopped(log_probs, old_log_probs, advantages)
        metrics = ratio_metrics(log_probs, old_log_probs)
        metrics["clip_fraction_low"] = below.to(log_probs.dtype)
        metrics["clip_fraction_high"] = above.to(log_probs.dtype)
        return metrics


@dataclass(frozen=True)
class DPPOTV(_DPPO):
    """-A log_probs sg(min(r, ratio_max)), 0 where the probability itself has moved too far.

    Too far is π - π_old above `high` (A > 0) or below -`low` (else). Divergence PPO
    (arXiv:2602.04879), by total variation.

    Attributes:
        low, high: of the difference of two probabilities.
        ratio_max: the largest weight.
    """

    low: float = 0.2
    high: float = 0.2
    ratio_max: float = 20.0

    stabilization_mask = (
        "min(r, max) / r, and 0 where A > 0 and π - π_old > high, or A <= 0 and π - π_old < -low"
    )

    def __post_init__(self) -> None:
        checks.not_negative("DPPOTV.low", self.low)
        checks.not_negative("DPPOTV.high", self.high)
        checks.positive("DPPOTV.ratio_max", self.ratio_max)

    def _stopped(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor
    ) -> tuple[Tensor, Tensor]:
        moved, positive = log_probs.exp() - old_log_probs.exp(), advantages > 0
        return (moved < -self.low) & ~positive, (moved > self.high) & positive


@dataclass(frozen=True)
class DPPOKL(_DPPO):
    """-A log_probs sg(min(r, ratio_max)), 0 where a divergence of two outcomes is too large.

    Divergence PPO (arXiv:2602.04879), by the KL divergence of (token, any other):

        k = π_old (log π_old - log π) + (1 - π_old) log((1 - π_old + 1e-8) / (1 - π + 1e-8))

    0 where k > `high` and π > π_old (A > 0), or k > `low` and π < π_old (else).

    Attributes:
        low, high: of k, in nats.
        ratio_max: the largest weight.
    """

    low: float = 0.2
    high: float = 0.2
    ratio_max: float = 20.0

    stabilization_mask = (
        "min(r, max) / r, and 0 where A > 0, π > π_old, k > high, or A <= 0, π < π_old, k > low"
    )

    def __post_init__(self) -> None:
        checks.not_negative("DPPOKL.low", self.low)
        checks.not_negative("DPPOKL.high", self.high)
        checks.positive("DPPOKL.ratio_max", self.ratio_max)

    def _stopped(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor
    ) -> tuple[Tensor, Tensor]:
        new, old, positive = log_probs.exp(), old_log_probs.exp(), advantages > 0
        others = torch.log((1 - old + 1e-8) / (1 - new + 1e-8))
        k = old * (old_log_probs - log_probs) + (1 - old) * others
        return (k > self.low) & (new < old) & ~positive, (k > self.high) & (new > old) & positive


@dataclass(frozen=True)
class DRO(TokenObjective):
    """-(A log_probs - beta / 2 (log_probs - old_log_probs)^2), the log-ratio as it is.

    Richemond et al. 2024 (arXiv:2405.19107), a token at a time.

    Attributes:
        beta: of the quadratic penalty.
    """

    beta: float

    stabilization_mask = "1 - beta log r / A"
    reference_denominator = "π"
    paper = "arXiv:2405.19107"
    zero_at_zero_advantage = False

    def __post_init__(self) -> None:
        checks.not_negative("DRO.beta", self.beta)

    def token_losses(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        penalty = (log_probs - old_log_probs).square() * (self.beta / 2)
        return penalty - advantages * log_probs


@dataclass(frozen=True)
class Surrogate(TokenObjective):
    """-A r, nothing clipped.

    TRPO's objective (arXiv:1502.05477) without its constraint, and that of HPT's code for rollouts.
    """

    paper = "arXiv:1502.05477"

    def token_losses(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        return -advantages * log_ratio(log_probs, old_log_probs).exp()


@dataclass(frozen=True)
class Reinforce(TokenObjective):
    """-A log_probs.

    Williams 1992. `old_log_probs` serve the metrics alone.
    """

    reference_denominator = "π"
    paper = "Williams 1992"

    def token_losses(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        return -advantages * log_probs


@dataclass(frozen=True)
class GPG(Reinforce):
    """-A log_probs: the formula of Reinforce; what is GPG's own is in the advantages.

    Chu et al. 2025 (arXiv:2504.02546).
    """

    advantage = "alpha (R - mean R of the group)"
    paper = "arXiv:2504.02546"


def _above_one(name: str, value: float) -> None:
    checks.number(name, value)
    if value <= 1:
        raise ValueError(f"{name}: expected a number above 1, got {value}")
