"""What a loss tells beside itself: named values that lie in one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


class Metrics(Mapping[str, Tensor]):
    """Read-only. `metrics["ppo_kl"]` is a 0-d tensor on the loss's device, without gradient, and
    nothing waits for it; `metrics.floats()` reads all of them in one copy, where `.item()` would
    wait for each.

    Args:
        values: a tensor that holds them; or they by name, of one shape, dtype and device, which
            is how trainers' libraries make a mapping again, from its type, of what they did to it.
        places: where in the tensor each lies; not all of it needs a name.
    """

    __slots__ = ("_places", "_values")

    def __init__(
        self, values: Tensor | Mapping[str, Tensor], places: Mapping[str, int] | None = None
    ) -> None:
        if places is None and isinstance(values, Mapping):
            places = {name: at for at, name in enumerate(values)}
            values = torch.stack(list(values.values()))
        if not isinstance(values, Tensor) or places is None:
            raise TypeError(
                "values: expected a tensor and places, or a mapping of tensors alone, got "
                f"{type(values).__name__} and {type(places).__name__}"
            )
        self._values, self._places = values, places

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
