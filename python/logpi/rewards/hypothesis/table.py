"""A cohort as columns: numbers, classes and survival outcomes, frozen and comparable by content."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
MISSING = ""  # of a class


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of one length. Two tables are equal if they hold the same: results are remembered.

    Args:
        numbers: by name, float columns; NaN is missing.
        classes: by name, columns of labels, kept as text; "" is missing.
        survival: by name, (time, event): time to the event, or to the end of the observation where
            event is False.
    """

    numbers: Mapping[str, Any]
    classes: Mapping[str, Any]
    survival: Mapping[str, tuple[Any, Any]]

    def __post_init__(self) -> None:
        numbers = {name: _floats(name, column) for name, column in self.numbers.items()}
        classes = {name: _labels(name, column) for name, column in self.classes.items()}
        survival = {name: _outcome(name, *pair) for name, pair in self.survival.items()}
        names = [*numbers, *classes, *survival]
        for name in names:
            if not isinstance(name, str) or not name or "=" in name:
                raise ValueError(
                    f"column {name!r}: expected a name without '=', which marks levels"
                )
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"column {twice!r}: expected one of that name, got two")
        times = {name: time for name, (time, _) in survival.items()}
        sizes = {name: len(column) for name, column in {**numbers, **classes, **times}.items()}
        if not sizes:
            raise ValueError("numbers, classes, survival: expected a column, got none")
        if len(set(sizes.values())) > 1:
            raise ValueError(f"columns: expected one length, got {sorted(set(sizes.values()))}")
        for name, kept in (("numbers", numbers), ("classes", classes), ("survival", survival)):
            object.__setattr__(self, name, kept)

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        *,
        survival: Mapping[str, tuple[str, str]] | None = None,
        leave_out: Collection[str] = (),
    ) -> Table:
        """Of a pandas frame: numeric columns are numbers, all others (bool too) are classes.

        Args:
            frame: a pandas.DataFrame.
            survival: by name, the columns of time and event, which are then no columns themselves.
            leave_out: columns not to take, an id for example.
        """
        survival = survival or {}
        used = {name for pair in survival.values() for name in pair} | set(leave_out)
        for name in used:
            if name not in frame.columns:
                raise ValueError(f"{name}: expected a column of the frame, which has none such")
        numbers, classes = {}, {}
        for name in frame.columns:
            column = frame[name]
            if name in used:
                continue
            if column.dtype.kind in "iuf":
                numbers[str(name)] = column.to_numpy(float)
            else:
                missing = column.isna().to_numpy()
                labels = column.astype(object).to_numpy(copy=True)
                labels[missing] = MISSING
                classes[str(name)] = labels
        outcomes = {
            name: (frame[time].to_numpy(float), frame[event].to_numpy())
            for name, (time, event) in survival.items()
        }
        return cls(numbers, classes, outcomes)

    @cached_property
    def rows(self) -> int:
        for column in (*self.numbers.values(), *self.classes.values()):
            return len(column)
        return len(next(iter(self.survival.values()))[0])

    @cached_property
    def levels(self) -> dict[str, list[str]]:
        """The labels of each class that are there, sorted."""
        return {
            name: sorted({str(label) for label in np.unique(column)} - {MISSING})
            for name, column in self.classes.items()
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content."""
        found = hashlib.sha256()
        for name, column in sorted(self.numbers.items()):
            found.update(f"number {name!r}".encode() + np.ascontiguousarray(column).tobytes())
        for name, column in sorted(self.classes.items()):
            found.update(repr((name, column.tolist())).encode("utf-8", "backslashreplace"))
        for name, (time, event) in sorted(self.survival.items()):
            found.update(f"survival {name!r}".encode() + time.tobytes() + event.tobytes())
        return found.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return (
            f"Table({self.rows} rows, {len(self.numbers)} numbers, {len(self.classes)} classes, "
            f"survival={list(self.survival)})"
        )


def _floats(name: str, column: ArrayLike) -> Floats:
    found = np.array(column, dtype=np.float64)
    if found.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got {found.ndim}")
    found[np.isinf(found)] = np.nan
    found.flags.writeable = False
    return found


def _labels(name: str, column: Any) -> NDArray[np.str_]:
    found = np.array([str(label) for label in column], dtype=np.str_)
    found.flags.writeable = False
    return found


def _outcome(name: str, time: ArrayLike, event: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    times, events = _floats(f"{name}.time", time), np.array(event)
    if len(times) != len(events):
        raise ValueError(
            f"{name}: expected as many events as times, got {len(events)}, {len(times)}"
        )
    if not np.isin(events, (0, 1)).all():
        raise ValueError(f"{name}: expected events that are 0 or 1")
    if (times < 0).any():
        raise ValueError(f"{name}: expected times of at least 0, got {np.nanmin(times)}")
    events = events.astype(bool)
    events.flags.writeable = False
    return times, events
