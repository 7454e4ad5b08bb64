"""A vocabulary whose rows are spread over the ranks of a process group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def gather(packed: Tensor, group: Any) -> Tensor:
    """`[R, *packed.shape]`: every rank's tensor, in the order of the ranks. One collective."""
    size = torch.distributed.get_world_size(group)
    out = packed.new_empty((size, *packed.shape))
    torch.distributed.all_gather(list(out.unbind(0)), packed.contiguous(), group=group)
    return out


def sum_over_ranks(x: Tensor, group: Any) -> Tensor:
    """`x` itself, with what the other ranks have added. One collective."""
    torch.distributed.all_reduce(x, group=group)
    return x
