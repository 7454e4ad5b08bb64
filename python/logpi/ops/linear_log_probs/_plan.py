"""How the product is cut into tiles. docs/ops/linear_log_probs.md has the reasons."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

MIB = 1 << 20
WORKSPACE = {"cpu": 64 * MIB}  # elsewhere:
_GPU_WORKSPACE = 256 * MIB
_FORWARD_WIDTH = 8192  # columns of a forward tile; a row's bits depend on it, so on nothing else
_BACKWARD_WIDTH = 16384  # at most
_CACHED = (
    32 * MIB
)  # a forward tile is folded out of a last-level cache, where there is one so large
_LEAST_ROWS = 128  # that a forward tile has room for, or it becomes narrower
_LEAST_WIDTH = 64
_BLOCK = 16  # rows that are always made together


class Plan(NamedTuple):
    """Tiles of `rows` rows and `width` columns."""

    begin: int
    end: int
    width: int
    rows: int

    def tiles(self, begin: int | None = None) -> Iterator[tuple[int, int]]:
        """First and last column of each tile, from `begin` on."""
        for at in range(self.begin if begin is None else begin, self.end, self.width):
            yield at, min(at + self.width, self.end)


def workspace(device: torch.device, asked: int | None) -> int:
    return WORKSPACE.get(device.type, _GPU_WORKSPACE) if asked is None else asked


def forward_plan(columns: tuple[int, int], column_bytes: int, itemsize: int, room: int) -> Plan:
    """Tiles for the sums. A column takes `column_bytes` of room beside the tile itself (the part of
    the weight that had to be cast). The width does not depend on the number of rows."""
    width, space = _FORWARD_WIDTH, for_tiles(room)
    while width > _LEAST_WIDTH and width * (_LEAST_ROWS * itemsize + column_bytes) > space:
        width //= 2
    rows = min(space - width * column_bytes, _CACHED) // (width * itemsize)
    if rows < _BLOCK:
        least = _LEAST_WIDTH * (column_bytes + _BLOCK * itemsize)
        raise ValueError(f"workspace_bytes: expected at least {with_rest(least)}, got {room}")
    return Plan(*columns, width, rows)


def backward_plan(
    columns: tuple[int, int], num_rows: int, column_bytes: int, itemsize: int, room: int
) -> Plan:
    """Tiles for the gradients: all rows at once, so a tile's weight gradient is one product."""
    width = for_tiles(room) // max(num_rows * itemsize + column_bytes, 1)
    width = min(width // _LEAST_WIDTH * _LEAST_WIDTH, _BACKWARD_WIDTH)
    if width < _LEAST_WIDTH:
        least = _LEAST_WIDTH * (num_rows * itemsize + column_bytes)
        raise ValueError(
            f"workspace_bytes: expected at least {with_rest(least)} for the backward of "
            f"{num_rows} rows, got {room}"
        )
    return Plan(*columns, width, num_rows)


def for_tiles(room: int) -> int:
    """All but a 32nd, which is for the state of the rows and for what torch's GEMM allocates."""
    return room - room // 32


def with_rest(tiles: int) -> int:
    return -(-tiles * 32 // 31)
