"""Problems of covariance_clip, and what the paper's code would select, written out in Python."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

Problem = tuple[Tensor, Tensor, Tensor, Tensor]  # log-probs, advantages, mask, exclude


def problem(size: int, kind: str = "plain", seed: int = 0) -> Problem:
    g = torch.Generator().manual_seed(seed)
    log_probs = -8 * torch.rand(size, generator=g).pow(4)
    advantages = torch.randn(size, generator=g)
    mask = torch.rand(size, generator=g) < 0.8
    exclude = torch.rand(size, generator=g) < 0.1
    middle = size // 2
    if kind == "wide":  # exponents from -126 to 127
        log_probs *= torch.exp(20 * torch.randn(size, generator=g)).clamp(max=1e35)
    elif kind == "equal":  # all c are 0
        advantages.fill_(0.1)
    elif kind == "few values":
        log_probs = torch.randint(-3, 0, (size,), generator=g).float()
        advantages = advantages.sign()
    elif kind == "nan":
        log_probs[middle], mask[middle] = torch.nan, True
    elif kind == "inf":
        log_probs[middle], mask[middle] = -torch.inf, True
    elif kind == "masked nan":
        log_probs[~mask], advantages[~mask] = torch.nan, torch.inf
    elif kind == "all masked":
        mask.fill_(False)
    elif kind == "none masked":
        mask.fill_(True)
    else:
        assert kind == "plain"
    return log_probs, advantages, mask, exclude


KINDS = (
    "plain", "wide", "equal", "few values", "nan", "inf", "masked nan", "all masked", "none masked",
)  # fmt: skip


def exact_mean(x: Tensor, mask: Tensor) -> float:
    """With Python's rationals, rounded once."""
    values = [Fraction(value) for value in x[mask].tolist()]
    return float(sum(values) / max(len(values), 1))


def selected_by_hand(c: Tensor, mask: Tensor, fraction: float) -> set[int]:
    """KL-Cov: a sorted list."""
    valid = [i for i in range(len(c)) if mask[i]]
    wanted = max(1, math.floor(len(valid) * fraction)) if valid else 0
    order = sorted(valid, key=lambda i: (not c[i].isnan(), -c[i].nan_to_num(0.0).item(), i))
    return set(order[:wanted])


def cut(tensors: Problem, sizes: tuple[int, ...]) -> list[Problem]:
    return list(zip(*(torch.split(tensor, list(sizes)) for tensor in tensors), strict=True))
