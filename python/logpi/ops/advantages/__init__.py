"""Advantages of sequences that are compared within groups, and of their tokens."""

from logpi.ops.advantages.outcome import (
    gdpo,
    gpg,
    group_centered,
    group_normalized,
    opo,
    pass_at_k,
    reinforce_plus_plus_baseline,
    rloo,
)
from logpi.ops.advantages.tokens import optimal_token_baseline, reinforce_plus_plus, remax

__all__ = [
    "gdpo",
    "gpg",
    "group_centered",
    "group_normalized",
    "opo",
    "optimal_token_baseline",
    "pass_at_k",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "remax",
    "rloo",
]
