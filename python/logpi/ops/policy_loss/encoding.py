"""Objectives as kernels know them: a number, up to four knobs, and the metrics they write."""

from __future__ import annotations

from logpi.ops.policy_loss.base import Objective
from logpi.ops.policy_loss.covariance import ClipCov, KLCov
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
from logpi.ops.policy_loss.offline import LUFFY, SFT, SHAPINGS

_CLIP = ("clip_ratio_low", "clip_ratio_high")
_DIVERGENCE = ("low", "high", "ratio_max")
# csrc/policy_loss/policy_loss.h has the numbers by name
KINDS: dict[type[Objective], tuple[int, tuple[str, ...]]] = {
    PPOClip: (0, _CLIP),
    DualClip: (1, (*_CLIP, "clip_ratio_c")),
    CISPO: (2, _CLIP),
    SAPO: (3, ("tau_positive", "tau_negative")),
    DPPOTV: (4, _DIVERGENCE),
    DPPOKL: (5, _DIVERGENCE),
    DRO: (6, ("beta",)),
    Surrogate: (7, ()),
    Reinforce: (8, ()),
    GPG: (8, ()),
    SFT: (9, ()),
    ClipCov: (10, _CLIP),
    KLCov: (11, ("coef",)),
    LUFFY: (12, ("constant",)),  # to 17, by its shaping
}

# Where a metric stands in what a kernel writes; behind "ratio" and its kin come three fractions.
POLICY_LOSS, RATIO, K1, K3, FRACTION, KL, ENTROPY, METRICS = 0, 1, 2, 3, 4, 7, 8, 9


def kind_and_knobs(objective: Objective) -> tuple[int, float, float, float]:
    """Its number and its knobs; unused ones are 0."""
    kind, names = KINDS[type(objective)]
    if isinstance(objective, LUFFY):
        kind += SHAPINGS.index(objective.shaping)
    a, b, c = (*(float(getattr(objective, name)) for name in names), 0.0, 0.0, 0.0)[:3]
    return kind, a, b, c


def written(objective: Objective, kl: bool, entropy: bool) -> dict[str, int]:
    """The metrics of a call and where they stand, in the order of the definition's."""
    names = {"policy_loss": POLICY_LOSS}
    if entropy:
        names["entropy"] = ENTROPY
    if kl:
        names["kl"] = KL
    names |= {"ratio": RATIO, "approx_kl_k1": K1, "approx_kl_k3": K3}
    return names | {name: FRACTION + at for at, name in enumerate(objective.fractions)}
