"""What a loss tells beside itself: named values that lie in one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


class Metrics(Mapping[str, Tensor]):
    """Read-only. `metrics["ppo_kl"]` is a 0-d tensor on the loss's device, without gradient, and
    nothing waits for it; `metrics.floats()` reads all of them in one copy, where `.item()` would
    wait for each."""

    __slots__ = ("_places", "_values")

    def __init__(self, values: Tensor, places: Mapping[str, int]) -> None:
        self._values, self._places = values, places  # [..], of which some have names

    @classmethod
    def stacked(cls, named: Mapping[str, Tensor]) -> Metrics:
        """Of 0-d tensors of one dtype, on one device."""
        return cls(torch.stack(list(named.values())), {name: at for at, name in enumerate(named)})

    def floats(self) -> dict[str, float]:
        """All of them as numbers. On a GPU it waits, once."""
        values = self._values.tolist()
        return {name: values[at] for name, at in self._places.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._values[self._places[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"Metrics({self.floats()})"
