"""Objectives, and the sum of their token losses."""

from logpi.ops.policy_loss.loss import PolicyLoss
from logpi.ops.policy_loss.objectives import (
    CISPO,
    GSPO,
    KL,
    DualClip,
    Objective,
    PPOClip,
    Reinforce,
    TokenObjective,
)

__all__ = [
    "CISPO",
    "GSPO",
    "KL",
    "DualClip",
    "Objective",
    "PPOClip",
    "PolicyLoss",
    "Reinforce",
    "TokenObjective",
]
