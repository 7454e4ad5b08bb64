"""What the tests of sample_tokens draw from, and how they compare draws."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TRUNCATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "all": {"top_k": 30, "top_p": 0.9, "min_p": 0.02},
}


def logits(*shape: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def chi_square_fits(counts: Tensor, p: Tensor, least: float = 5.0) -> bool:
    """Whether counts are those of draws from p, at one in 10^6. Entries that expect fewer than
    `least` are pooled, smallest first: a wrong tail shows."""
    expected = counts.sum() * p
    order = expected.argsort()
    group = torch.div(expected[order].cumsum(0), least, rounding_mode="floor").long()
    group = group.where(expected[order] < least, group + torch.arange(len(group)))
    _, group = group.unique_consecutive(return_inverse=True)
    bins = int(group.max()) + 1
    seen = torch.zeros(bins, dtype=torch.float64).index_add_(0, group, counts[order].double())
    wanted = torch.zeros(bins, dtype=torch.float64).index_add_(0, group, expected[order])
    assert not seen[wanted == 0].any()
    live = wanted > 0
    statistic = ((seen - wanted)[live].square() / wanted[live]).sum()
    freedom = max(int(live.sum()) - 1, 1)
    # Wilson and Hilferty 1931: its cube root is nearly normal
    score = (statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))
    return bool(score / (2 / (9 * freedom)) ** 0.5 < 4.75)
