"""What a run must reach: each target is read off the rows of that very run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

AT_MOST = ("memory", "us")  # metrics where less is better


@dataclass(frozen=True)
class Target:
    """A bound on our row.

    Attributes:
        label: what the number is.
        shape: "[rows, vocab]".
        where: (pass, buffers).
        metric: "of_read", "of_copy", "ratio", "us", or "memory" (input and peak over input).
        bound: the least it may be, or for "us" and "memory" the most.
        dtype: one dtype; None: each that was measured.
        against: for "ratio", the peers whose names start so; the strongest of them counts.
        ours: part of our row's name; "" takes the first that ran.
    """

    label: str
    shape: str
    where: tuple[str, str]
    metric: str
    bound: float
    dtype: str | None = None
    against: str | None = None
    ours: str = ""

    def check(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """One verdict per dtype; `met` is None where the run did not measure it."""
        here = [
            r for r in rows if (r["shape"], r["pass"], r["buffers"]) == (self.shape, *self.where)
        ]
        dtypes = [self.dtype] if self.dtype else sorted({r["dtype"] for r in here}) or ["any"]
        out = []
        for dtype in dtypes:
            value, beside = self._value([r for r in here if r["dtype"] == dtype])
            met = None
            if value is not None:
                met = value <= self.bound if self.metric in AT_MOST else value >= self.bound
            out.append(
                {"shape": self.shape, "dtype": dtype, "pass": " ".join(filter(None, self.where))}
                | {"label": self.label, "value": value, "bound": self.bound, "met": met}
                | {"sense": "<=" if self.metric in AT_MOST else ">=", "beside": beside}
            )
        return out

    def _value(self, rows: list[dict[str, Any]]) -> tuple[float | None, str]:
        ran = [row for row in rows if row["refusal"] is None]
        ours = [r for r in ran if r["role"] == "ours" and self.ours in r["provider"]]
        if not ours:
            return None, ""
        if self.metric == "ratio":
            peers = [r for r in ran if r["role"] == "peer" and r["ratio"] is not None]
            peers = [r for r in peers if r["provider"].startswith(self.against or "")]
            best = min(peers, key=lambda r: r["ratio"], default=None)
            return (best["ratio"], best["provider"]) if best else (None, "")
        if self.metric == "memory":
            peak = ours[0]["peak_bytes"]
            return None if peak is None else 1 + peak / ours[0]["input_bytes"], ours[0]["provider"]
        return ours[0][self.metric], ours[0]["provider"]
