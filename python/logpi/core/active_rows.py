"""Rows that take part, first; how many they are, without making a GPU wait for the answer."""

from __future__ import annotations

import torch
from torch import Tensor


class ActiveRows:
    """The rows where a mask is True, brought to the front.

    On a CPU they are counted at once. On a GPU the count is copied to the host behind whatever is
    queued: `count()` is all rows until `count(settle=True)` is asked for, which waits for the copy.
    Ask when work is queued behind it, and the device does not run dry. While a CUDA graph is
    captured nothing may wait, and it stays all rows.

    Attributes:
        num_rows: N, with those that take no part.
        index: `[count]` on a CPU; `[N]` on a GPU, active rows first. None: every row, as it lies.
        mask: `[N]` bool in the order of `index`, or None where all that `index` names are active.
    """

    def __init__(self, mask: Tensor | None, num_rows: int) -> None:
        self.num_rows = num_rows
        self.index: Tensor | None = None
        self.mask: Tensor | None = None
        self._count = num_rows
        self._pending: tuple[Tensor, torch.cuda.Event] | None = None
        if mask is None:
            return
        if mask.device.type == "cpu":
            index = mask.nonzero()[:, 0]
            if len(index) < num_rows:
                self.index, self._count = index, len(index)
            return
        self.index = mask.logical_not().argsort(stable=True)
        self.mask = mask[self.index]
        if torch.cuda.is_current_stream_capturing():
            return
        host = torch.empty((), dtype=torch.int64, pin_memory=True)
        host.copy_(mask.sum(), non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(mask.device))
        self._pending = host, event

    def count(self, settle: bool = False) -> int:
        """How many of the rows that `index` names need work: at least the active ones."""
        if self._pending is not None:
            host, event = self._pending
            if settle:
                event.synchronize()
            if event.query():  # type: ignore[no-untyped-call]
                self._count, self._pending = int(host), None
        return self._count

    def take(self, rows: Tensor) -> Tensor:
        """`rows [N, ..]` in the order of `index`; those of an inactive row are 0."""
        if self.index is None:
            return rows
        taken = rows.index_select(0, self.index)
        if self.mask is None:
            return taken
        shape = (-1,) + (1,) * (rows.dim() - 1)
        return taken.masked_fill_(~self.mask.view(shape), 0)  # not * 0: NaN would stay

    def put(self, rows: Tensor) -> Tensor:
        """The inverse of `take`: `[N, ..]`, 0 in the rows that were left out. `rows` is used up."""
        if self.index is None:
            return rows
        if self.mask is not None:
            rows = rows.masked_fill_(~self.mask.view((-1,) + (1,) * (rows.dim() - 1)), 0)
        out = rows.new_zeros((self.num_rows, *rows.shape[1:]))
        return out.index_copy_(0, self.index, rows)

    def positions_of(self, other: ActiveRows) -> Tensor | None:
        """Where the rows of `other` are among those that `index` names here; None: the same."""
        if other.index is None and self.index is None:
            return None
        if self.index is None:
            return other.index
        device = self.index.device
        at = torch.zeros(self.num_rows, dtype=torch.int64, device=device)
        at[self.index] = torch.arange(len(self.index), device=device)
        return at if other.index is None else at[other.index]
