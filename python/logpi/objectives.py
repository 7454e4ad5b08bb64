"""Objectives of a policy loss: `from logpi.objectives import PPOClip, KL`.

`python -m logpi objectives` prints what each of them is.
"""

from logpi.ops.policy_loss.base import Objective, TokenObjective
from logpi.ops.policy_loss.covariance import ClipCov, KLCov
from logpi.ops.policy_loss.hpt import HPT, SoftHPT
from logpi.ops.policy_loss.importance import RolloutImportance
from logpi.ops.policy_loss.kl import KL
from logpi.ops.policy_loss.objectives import (
    CISPO,
    DPPOKL,
    DPPOTV,
    DRO,
    GPG,
    SAPO,
    DualClip,
    PPOClip,
    Reinforce,
    Surrogate,
)
from logpi.ops.policy_loss.offline import LUFFY, SFT
from logpi.ops.policy_loss.sequences import GMPO, GSPO

__all__ = [
    "CISPO",
    "DPPOKL",
    "DPPOTV",
    "DRO",
    "GMPO",
    "GPG",
    "GSPO",
    "HPT",
    "KL",
    "LUFFY",
    "SAPO",
    "SFT",
    "ClipCov",
    "DualClip",
    "KLCov",
    "Objective",
    "PPOClip",
    "Reinforce",
    "RolloutImportance",
    "SoftHPT",
    "Surrogate",
    "TokenObjective",
]
