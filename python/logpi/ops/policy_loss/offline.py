"""Objectives for tokens that another policy wrote: demonstrations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from logpi.core import checks
from logpi.ops.policy_loss.base import TokenObjective

SHAPINGS = ("p/(p+c)", "p^c", "p", "log p", "p + log p", "sqrt p")  # kernels know their places
_WITH_C = {"p/(p+c)": 0.1, "p^c": None}


@dataclass(frozen=True)
class SFT(TokenObjective):
    """-log_probs: the likelihood of demonstrations.

    Advantages have no part in it, and `old_log_probs` serve the metrics alone.
    """

    reference_denominator = "π"
    advantage = "1"
    zero_at_zero_advantage = False

    def token_losses(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        return -log_probs


@dataclass(frozen=True)
class LUFFY(TokenObjective):
    """-A f(p), p = exp(log_probs): off-policy demonstrations, unlikely tokens lifted.

    Yan et al. 2025 (arXiv:2504.14945), the part for tokens of another policy. The probability under
    which they were drawn counts as 1. `old_log_probs` serve the metrics alone.

    Attributes:
        shaping: f; "p/(p+c)", "p^c", "p", "log p", "p + log p" or "sqrt p".
        c: of the first two; None: 0.1 for "p/(p+c)".
    """

    shaping: str = "p/(p+c)"
    c: float | None = None

    stabilization_mask = "f'(p): c / (p + c)^2 of p / (p + c)"
    reference_denominator = "1"

    paper = "arXiv:2504.14945"

    def __post_init__(self) -> None:
        if self.shaping not in SHAPINGS:
            known = ", ".join(repr(name) for name in SHAPINGS)
            raise ValueError(f"LUFFY.shaping: expected one of {known}, got {self.shaping!r}")
        if self.shaping not in _WITH_C:
            if self.c is not None:
                raise ValueError(
                    f"LUFFY.c: expected None, as {self.shaping!r} does not use it, got {self.c}"
                )
        elif self.c is None and _WITH_C[self.shaping] is None:
            raise ValueError(f"LUFFY.c: expected a number for {self.shaping!r}, got None")
        elif self.c is not None:
            checks.positive("LUFFY.c", self.c)

    @property
    def constant(self) -> float:
        """c, or its default; 0 where f has none."""
        return (_WITH_C.get(self.shaping) or 0.0) if self.c is None else self.c

    def token_losses(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        return -advantages * self.shaped(log_probs)

    def shaped(self, log_probs: Tensor) -> Tensor:
        """f(p)."""
        c = self.constant
        if self.shaping == "p/(p+c)":
            p = log_probs.exp()
            return p / (p + c)
        if self.shaping == "p^c":
            return (c * log_probs).exp()
        if self.shaping == "p":
            return log_probs.exp()
        if self.shaping == "log p":
            return log_probs
        if self.shaping == "p + log p":
            return log_probs.exp() + log_probs
        return torch.exp(log_probs / 2)
