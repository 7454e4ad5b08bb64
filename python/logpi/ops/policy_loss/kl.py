"""The penalty for leaving a reference policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from logpi.core import checks
from logpi.ops.policy_loss.base import LOG_RATIO_BOUND

_K3_BOUND = 10.0
ESTIMATORS = ("k1", "k2", "k3", "abs", "k1+", "k3+", "abs+")  # kernels know them by their place


@dataclass(frozen=True)
class KL:
    """A penalty for leaving the reference policy, `coef` times an estimate a token.

        k1 = log_probs - ref_log_probs = -x      abs = |x|      k2 = x^2 / 2
        k3 = e^x - x - 1 with x in [-20, 20], at most 10

    Schulman 2020, http://joschu.net/blog/kl-approx.html. The gradient is that of the estimate; with
    a "+" behind the name that of k2, whose expectation is the gradient of the KL divergence.

    Attributes:
        coef: multiplies it; 0 only reports it.
        estimator: "k1", "k2", "k3", "abs", "k1+", "k3+" or "abs+".
    """

    coef: float
    estimator: str = "k3"

    def __post_init__(self) -> None:
        checks.not_negative("KL.coef", self.coef)
        if self.estimator not in ESTIMATORS:
            known = ", ".join(repr(name) for name in ESTIMATORS)
            raise ValueError(f"KL.estimator: expected one of {known}, got {self.estimator!r}")

    def token_values(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        """`[..]`, differentiable in `log_probs`."""
        x = ref_log_probs - log_probs
        if self.estimator.endswith("+"):
            slope = x.square() / 2
            return self._estimate(x.detach()) + (slope - slope.detach())
        return self._estimate(x)

    def _estimate(self, x: Tensor) -> Tensor:
        name = self.estimator.rstrip("+")
        if name == "k1":
            return -x
        if name == "abs":
            return x.abs()
        if name == "k2":
            return x.square() / 2
        x = x.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
        return (torch.expm1(x) - x).clamp(-_K3_BOUND, _K3_BOUND)
