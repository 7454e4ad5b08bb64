"""Advantages: `from logpi.advantages import group_normalized`."""

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
from logpi.ops.gae import Gae, gae

__all__ = [
    "Gae",
    "gae",
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
