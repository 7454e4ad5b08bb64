"""Robot actions as tokens: OpenVLA's bins, and the statistics that stretch them to a robot's units.

    edges    e_j = -1 + 2 j / (num_bins - 1)         j = 0 .. num_bins - 1
    encode   d = #{j : e_j <= clip(a, -1, 1)}        token = vocab_size - d
    decode   k = clip(vocab_size - token - 1, 0, num_bins - 2), a = (e_k + e_(k+1)) / 2

The highest id is the lowest action. There is a centre less than there are tokens: the two lowest
ids are aliases, two actions of the policy and one of the robot.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from logpi.core import checks

STATISTICS_FILE = "dataset_statistics.json"
NORMALIZATIONS = {"quantile": ("q01", "q99"), "minmax": ("min", "max")}


@dataclass(frozen=True)
class ActionCodec:
    """Between continuous actions, token ids and a robot's own units, as OpenVLA and OpenVLA-OFT do
    it. Tensor in, tensor out, on any device; nothing is read on the host.

    Attributes:
        num_bins: edges, and tokens; centres are one less. At least 2.
        vocab_size: of the tokenizer, without the padding of the head's rows: action tokens are its
            last `num_bins` ids.
        low, high: what -1 and 1 stand for, one number an action dimension; None: actions stay in
            [-1, 1].
        mask: which dimensions are stretched; None: all. The others, such as a gripper, stay as
            they are.
        epsilon: added to high - low. 1e-8 as in OpenVLA-OFT; 0 as in OpenVLA.
    """

    num_bins: int = 256
    vocab_size: int = 32000
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    mask: tuple[bool, ...] | None = None
    epsilon: float = 1e-8
    _tables: dict[Any, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        checks.at_least("num_bins", self.num_bins, 2)
        checks.at_least("vocab_size", self.vocab_size, self.num_bins)
        checks.not_negative("epsilon", self.epsilon)
        if self.low is None or self.high is None:
            for name, value in (("low", self.low), ("high", self.high), ("mask", self.mask)):
                if value is not None:
                    raise ValueError(f"{name}: expected None without low and high, got {value}")
            return
        low, high = _numbers("low", self.low), _numbers("high", self.high)
        mask = _flags("mask", (True,) * len(low) if self.mask is None else self.mask)
        for name, values in (("high", high), ("mask", mask)):
            if len(values) != len(low):
                raise ValueError(f"{name}: expected {len(low)} values as in low, got {len(values)}")
        for at, (a, b, stretched) in enumerate(zip(low, high, mask, strict=True)):
            if stretched and not a <= b:
                raise ValueError(f"high: expected at least low, {a}, got {b} in dimension {at}")
        for name, value in (("low", low), ("high", high), ("mask", mask)):
            object.__setattr__(self, name, value)

    @classmethod
    def from_dataset_statistics(
        cls,
        statistics: str | os.PathLike[str] | Mapping[str, Any],
        key: str | None = None,
        normalization: str = "quantile",
        **options: Any,
    ) -> Self:
        """Of an OpenVLA checkpoint.

        Args:
            statistics: its `dataset_statistics.json`, the folder that holds it, or its contents.
            key: the data set, such as "libero_spatial_no_noops"; None: the only one there is.
            normalization: "quantile": q01 and q99, as OpenVLA always and OpenVLA-OFT on LIBERO;
                "minmax": min and max, as OpenVLA-OFT on ALOHA.
            options: `num_bins`, `vocab_size`, `epsilon`.
        """
        if normalization not in NORMALIZATIONS:
            known = " or ".join(repr(name) for name in NORMALIZATIONS)
            raise ValueError(f"normalization: expected {known}, got {normalization!r}")
        where = "statistics"
        if not isinstance(statistics, Mapping):
            path = Path(statistics)
            path = path / STATISTICS_FILE if path.is_dir() else path
            statistics, where = json.loads(path.read_text(encoding="utf-8")), str(path)
            if not isinstance(statistics, Mapping):
                raise ValueError(f"{where}: expected an object, got {type(statistics).__name__}")
        if key is None and len(statistics) == 1:
            key = next(iter(statistics))
        action = _entry(_entry(statistics, key, where, "key"), "action", f"{where}[{key!r}]")
        low, high = (
            _entry(action, name, f"{where}[{key!r}]['action']")
            for name in NORMALIZATIONS[normalization]
        )
        return cls(low=low, high=high, mask=action.get("mask"), **options)

    @property
    def support(self) -> slice:
        """The action tokens, as `token_log_probs` and `linear_log_probs` take it."""
        return slice(self.vocab_size - self.num_bins, self.vocab_size)

    @property
    def action_dim(self) -> int | None:
        """Numbers in an action; None without statistics."""
        return None if self.low is None else len(self.low)

    def encode(self, actions: Tensor) -> Tensor:
        """`[..]` in [-1, 1] (others are clipped) to int64 token ids. NaN is no action and becomes
        -1, which is no token."""
        checks.dtype("actions", actions, *checks.FLOATS)
        edges = self._on(actions.device, "edges")
        x = actions.detach().double().clamp(-1, 1)
        ids = self.vocab_size - torch.bucketize(x, edges, right=True)
        return ids.where(x == x, -1)

    def decode(self, token_ids: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Token ids `[..]` to the centres of their bins, in [-1, 1]. Ids that are no action tokens
        become the nearest end, as in OpenVLA."""
        return self._on(token_ids.device, "centres")[self._bins(token_ids)].to(dtype)

    def unnormalize(self, actions: Tensor) -> Tensor:
        """`[.., action_dim]` (or `[.., chunk * action_dim]`, step by step) from [-1, 1] to the
        robot's units, in float32 (float64 of float64). Nothing is clipped; without statistics
        nothing happens."""
        return self._stretch(actions, self._unnormalized)

    def normalize(self, actions: Tensor) -> Tensor:
        """The way back, clipped to [-1, 1] where the mask is True. A dimension that never moves
        (high == low) becomes 0."""
        return self._stretch(actions, self._normalized)

    def table(self, device: torch.device) -> Tensor:
        """`[action_dim or 1, num_bins]` float32: what the id support.start + j stands for in the
        robot's units. Made once a device."""
        return self._on(device, "table")

    # ---- inside ----

    def _bins(self, token_ids: Tensor) -> Tensor:
        checks.dtype("token_ids", token_ids, torch.int64, torch.int32)
        return (self.vocab_size - 1 - token_ids.long()).clamp(0, self.num_bins - 2)

    def _on(self, device: torch.device, name: str) -> Tensor:
        tensor = self._tables.get((device, name))
        if tensor is None:
            tensor = self._tables[device, name] = getattr(self, "_" + name)().to(device)
        return tensor

    def _edges(self) -> Tensor:
        """As numpy.linspace has them, bit by bit."""
        edges = torch.arange(self.num_bins, dtype=torch.float64) * (2 / (self.num_bins - 1)) - 1
        edges[-1] = 1
        return edges

    def _centres(self) -> Tensor:
        edges = self._edges()
        return (edges[:-1] + edges[1:]) / 2

    def _table(self) -> Tensor:
        centres = self.decode(
            torch.arange(*self.support.indices(self.vocab_size)), dtype=torch.float64
        )
        if self.action_dim is None:
            return centres.float()[None]
        return self.unnormalize(centres[:, None].expand(-1, self.action_dim)).T.float().contiguous()

    def _bounds(self) -> Tensor:
        """`[3, action_dim]`: low, high, mask."""
        return torch.tensor([self.low, self.high, self.mask], dtype=torch.float64)

    def _stretch(self, actions: Tensor, f: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        checks.dtype("actions", actions, *checks.FLOATS)
        wide = torch.float64 if actions.dtype == torch.float64 else torch.float32
        if self.action_dim is None:
            return actions.to(wide)
        last = actions.shape[-1] if actions.dim() else 0
        if last == 0 or last % self.action_dim:
            raise ValueError(
                f"actions: expected a last dimension of {self.action_dim} or a multiple of it, got "
                f"shape {tuple(actions.shape)}"
            )
        x = actions.double().reshape(*actions.shape[:-1], -1, self.action_dim)
        low, high, mask = self._on(actions.device, "bounds").unbind()
        return f(x, low, high).where(mask != 0, x).reshape(actions.shape).to(wide)

    def _unnormalized(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return 0.5 * (x + 1) * (high - low + self.epsilon) + low

    def _normalized(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        y = 2 * (x - low) / (high - low + self.epsilon) - 1
        return y.clamp(-1, 1).where(high != low, 0.0)


def _values(name: str, given: Any) -> list[Any]:
    given = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(given, (list, tuple)) or not given:
        raise TypeError(f"{name}: expected a number a dimension, got {given!r}")
    return list(given)


def _numbers(name: str, given: Any) -> tuple[float, ...]:
    values = _values(name, given)
    for at, value in enumerate(values):
        checks.number(f"{name}[{at}]", value)
    return tuple(float(value) for value in values)


def _flags(name: str, given: Any) -> tuple[bool, ...]:
    values = _values(name, given)
    for at, value in enumerate(values):
        if not isinstance(value, bool):
            raise TypeError(f"{name}[{at}]: expected a bool, got {type(value).__name__}")
    return tuple(values)


def _entry(of: Any, key: Any, where: str, argument: str = "statistics") -> Any:
    if not isinstance(of, Mapping):
        raise ValueError(f"{argument}: expected an object at {where}, got {type(of).__name__}")
    if key not in of:
        there = ", ".join(repr(name) for name in of)
        raise ValueError(f"{argument}: expected one of {there} in {where}, got {key!r}")
    return of[key]
