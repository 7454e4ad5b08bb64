"""The one dispatcher: a table of rows per op, and the row that serves a call."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

AUTO = "auto"
_DEFAULT = os.environ.get("LOGPI_BACKEND", AUTO)  # what "auto" means in this process


class BackendError(RuntimeError):
    """No row can serve the call; the message holds every row's reason."""


def _nothing(_call: Any = None) -> str | None:
    return None


@dataclass(frozen=True)
class Backend:
    """One way to compute an op.

    Attributes:
        name: what `backend=` calls it.
        module: dotted path of the module with its launchers, imported on first use.
        why_not: a sentence that says why this row cannot serve a call, or None if it can. It must
            be cheap and may import nothing heavy.
        unavailable: the same about this machine, whatever the call.
    """

    name: str
    module: str
    why_not: Callable[[Any], str | None] = _nothing
    unavailable: Callable[[], str | None] = _nothing

    @cached_property
    def kernels(self) -> Any:  # a module; its functions are the launchers
        return importlib.import_module(self.module)

    def refusal(self, call: Any) -> str | None:
        """Why this row cannot serve the call, or None."""
        return self.unavailable() or self.why_not(call)


def select(op: str, rows: Sequence[Backend], name: str, call: Any) -> Backend:
    """The first row that serves `call`, or the row called `name`; raises `BackendError` otherwise.

    `LOGPI_BACKEND` in the environment, read at import, says what `"auto"` means.
    """
    if name == AUTO:
        name = _DEFAULT
    for row in rows:  # refusal() spelled out: a small call is as long as this loop
        if name in (AUTO, row.name) and (row.unavailable() or row.why_not(call)) is None:
            return row
    if name != AUTO and name not in (row.name for row in rows):
        known = ", ".join(repr(known) for known in (AUTO, *(row.name for row in rows)))
        raise ValueError(f"backend: expected one of {known} for {op}, got {name!r}")
    reasons = "\n".join(f"  {row.name}: {row.refusal(call) or 'can serve'}" for row in rows)
    raise BackendError(f"{op}: backend {name!r} cannot serve this call\n{reasons}")


def explain(rows: Sequence[Backend]) -> list[tuple[str, str | None]]:
    """(row, why it cannot serve on this machine or None), for `python -m logpi info`."""
    return [(row.name, row.unavailable()) for row in rows]
