"""What a token contributes to the loss: objectives as frozen dataclasses; no knob is dead.

    r = exp(clamp(log_probs - old_log_probs, -20, 20))

Every objective is an instance of the unified policy gradient estimator (arXiv:2509.04419),

    gradient = stabilization mask * (1 / reference denominator) * advantage * likelihood gradient

and says in four class attributes what its parts are. With ∇π = π ∇log π each is a weight on
∇log π; for a token-level objective the weight depends on that token alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from logpi.core import checks

# A log-ratio is clamped before the exponential, as the trainers do whose losses these are: e^20 is
# still a float32 whose products are finite. Outside the clamp no gradient flows.
LOG_RATIO_BOUND = 20.0
_SEQUENCE_LOG_RATIO_BOUND = 10.0
_K3_BOUND = 10.0


class Objective:
    """The common base.

    Attributes:
        token_level: whether a token's loss depends on that token alone.
        stabilization_mask, reference_denominator, advantage, likelihood_gradient: the four parts.
    """

    token_level: ClassVar[bool]
    stabilization_mask: ClassVar[str] = "1"
    reference_denominator: ClassVar[str] = "π_old"
    advantage: ClassVar[str] = "A, as given"
    likelihood_gradient: ClassVar[str] = "∇π"


class TokenObjective(Objective):
    """An objective whose token losses depend on their own token alone.

    Where the advantage is 0 the loss and its gradient are 0, whatever the ratio.
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
        log_r = log_ratio(log_probs, old_log_probs)
        return {
            "ratio": log_r.exp(),
            "approx_kl_k1": -log_r,
            "approx_kl_k3": torch.expm1(log_r) - log_r,
        }


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

    def __post_init__(self) -> None:
        _check_clip(self, self.clip_ratio_low, self.clip_ratio_high)

    def token_losses(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        ratio = log_ratio(log_probs, old_log_probs).exp()
        return clipped(ratio, advantages, self.clip_ratio_low, self.clip_ratio_high)

    def token_metrics(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor
    ) -> dict[str, Tensor]:
        metrics = super().token_metrics(log_probs, old_log_probs, advantages)
        below, above = (
            metrics["ratio"] < 1 - self.clip_ratio_low,
            metrics["ratio"] > 1 + self.clip_ratio_high,
        )
        metrics["clip_fraction_low"] = (below & (advantages < 0)).to(log_probs.dtype)
        metrics["clip_fraction_high"] = (above & (advantages > 0)).to(log_probs.dtype)
        return metrics


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

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number("DualClip.clip_ratio_c", self.clip_ratio_c)
        if self.clip_ratio_c <= 1:
            raise ValueError(
                f"DualClip.clip_ratio_c: expected a number above 1, got {self.clip_ratio_c}"
            )

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

    def __post_init__(self) -> None:
        _check_clip(self, self.clip_ratio_low, self.clip_ratio_high)

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
class Reinforce(TokenObjective):
    """-A log_probs: Williams 1992. `old_log_probs` serve the metrics alone."""

    reference_denominator = "π"

    def token_losses(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        return -advantages * log_probs


@dataclass(frozen=True)
class GSPO(Objective):
    """PPOClip on the ratio of the whole sequence, s = exp(mean of log_probs - old_log_probs).

    Zheng et al. 2025 (arXiv:2507.18071), the token form: s * exp(log_probs - sg(log_probs)). A
    token's gradient depends on every token of its sequence.

    Attributes:
        clip_ratio_low, clip_ratio_high: distances of s from 1; the authors' are 3e-4 and 4e-4.
    """

    clip_ratio_low: float = 3e-4
    clip_ratio_high: float = 4e-4

    token_level = False
    stabilization_mask = "0 where A > 0 and s > 1 + high, or A < 0 and s < 1 - low"
    reference_denominator = "π (π_old(sequence) / π(sequence))^(1 / length)"

    def __post_init__(self) -> None:
        _check_clip(self, self.clip_ratio_low, self.clip_ratio_high)

    def token_losses(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, loss_mask: Tensor
    ) -> Tensor:
        """`[B, T]`; means run over the tokens of `loss_mask`, bool `[B, T]`."""
        log_r = (log_probs - old_log_probs).detach().where(loss_mask, 0.0)
        mean = log_r.sum(-1, keepdim=True) / loss_mask.sum(-1, keepdim=True).clamp(min=1)
        ratio = (log_probs - log_probs.detach() + mean).clamp(max=_SEQUENCE_LOG_RATIO_BOUND).exp()
        return clipped(ratio, advantages, self.clip_ratio_low, self.clip_ratio_high)


@dataclass(frozen=True)
class KL:
    """A penalty for leaving the reference policy, `coef` times an estimate a token.

        k1 = log_probs - ref_log_probs = -x      abs = |x|      k2 = x^2 / 2
        k3 = e^x - x - 1 with x in [-20, 20], at most 10

    Schulman 2020, http://joschu.net/blog/kl-approx.html. The gradient is that of the estimate.

    Attributes:
        coef: multiplies it; 0 only reports it.
        estimator: "k1", "k2", "k3" or "abs".
    """

    coef: float
    estimator: str = "k3"

    def __post_init__(self) -> None:
        checks.not_negative("KL.coef", self.coef)
        if self.estimator not in _ESTIMATORS:
            known = ", ".join(repr(name) for name in _ESTIMATORS)
            raise ValueError(f"KL.estimator: expected one of {known}, got {self.estimator!r}")

    def token_values(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        """`[..]`, differentiable in `log_probs`."""
        x = ref_log_probs - log_probs
        if self.estimator == "k1":
            return -x
        if self.estimator == "abs":
            return x.abs()
        if self.estimator == "k2":
            return x.square() / 2
        x = x.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
        return (torch.expm1(x) - x).clamp(-_K3_BOUND, _K3_BOUND)


_ESTIMATORS = ("k1", "k2", "k3", "abs")


def log_ratio(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    return (log_probs - old_log_probs).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def clipped(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """max(-A r, -A clamp(r, 1 - low, 1 + high))."""
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high))


def _check_clip(objective: Objective, low: float, high: float) -> None:
    name = type(objective).__name__
    checks.not_negative(f"{name}.clip_ratio_low", low)
    checks.not_negative(f"{name}.clip_ratio_high", high)
