"""Objectives of a policy loss: `from logpi.objectives import PPOClip, KL`."""

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
    "Reinforce",
    "TokenObjective",
]
