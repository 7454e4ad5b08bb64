"""Rows of a batch that share a prompt, found and added up on the device; nobody waits for it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Groups(NamedTuple):
    order: Tensor  # [B] rows, one group after the other
    offsets: (
        Tensor  # [B + 1] where each group begins in `order`; as many groups as rows, some empty
    )
    of: Tensor  # [B] the number of each row's group
    size: Tensor  # [B] float64, how many rows each row's group has

    def sum(self, x: Tensor) -> Tensor:  # [B, ..] float64 to [B, ..]
        """The sum over each row's group, added in the order of `order`; NaN stays in its group."""
        sums = torch.segment_reduce(
            x[self.order], "sum", offsets=self.offsets, axis=0, unsafe=True, initial=0
        )
        return sums[self.of]

    def mean(self, x: Tensor) -> Tensor:
        return self.sum(x) / self.size

    def first(self, x: Tensor, place: int = 0) -> Tensor:
        """What the first row of each row's group in `order` has (or the one at that place)."""
        at = (self.offsets[self.of] + place).clamp(max=len(self.order) - 1)
        return x[self.order][at]


def groups(group_ids: Tensor, within: Tensor) -> Groups:  # [B] int, [B]
    """Groups with their rows in the order of `within`, largest first: so a group's sum does not
    depend on how the batch is ordered, not even in its last bit."""
    order = within.argsort(descending=True, stable=True)
    order = order[group_ids[order].argsort(stable=True)]
    sorted_ids = group_ids[order]
    begins = torch.ones_like(sorted_ids)
    begins[1:] = sorted_ids[1:] != sorted_ids[:-1]
    number = begins.cumsum(0) - 1
    of = torch.empty_like(number).scatter_(0, order, number)
    every = torch.arange(len(order) + 1, device=order.device)
    offsets = torch.searchsorted(number, every)
    return Groups(order, offsets, of, (offsets[of + 1] - offsets[of]).double())
