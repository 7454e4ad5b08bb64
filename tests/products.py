"""Counts the matrix products that run, wherever torch is asked for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_FIRST_OPERAND = {_aten.mm: 0, _aten.addmm: 1}


class Products(TorchDispatchMode):
    """Within it, (rows, inner, columns) of every matrix product is appended to `shapes`."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int, int]] = []

    @property
    def flops(self) -> int:
        return sum(2 * m * k * n for m, k, n in self.shapes)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        first = _FIRST_OPERAND.get(func.overloadpacket)
        if first is not None:
            a, b = args[first : first + 2]
            self.shapes.append((*a.shape, b.shape[1]))
        return func(*args, **(kwargs or {}))
