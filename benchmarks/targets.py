"""What a run must reach: each target is read off the rows of that very run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

AT_MOST = ("memory", "us", "beside", "beyond_mib")  # metrics where less is better


@dataclass(frozen=True)
class Target:
    """A bound on our row.

    Attributes:
        label: what the number is.
        shape: as it prints: "[rows, vocab]", or "[rows, hidden, vocab]".
        where: (pass, buffers).
        metric: "of_read", "of_copy", "us", "memory" (input and peak over input), "beyond_mib" (the
            peak without what is returned, MiB); "ratio" and "peak_ratio" (a peer's time and peak
            over ours); "beside" (our time over that of a row of the group, a reference or ours).
        bound: the least it may be, or for those in AT_MOST the most.
        dtype: one dtype; None: each that was measured.
        against: how the names of the others start; of several peers the strongest counts.
        ours: part of our row's name; "" takes the first that ran.
        caches: "cold", or "warm".
    """

    label: str
    shape: str
    where: tuple[str, str]
    metric: str
    bound: float
    dtype: str | None = None
    against: str | None = None
    ours: str = ""
    caches: str = "cold"

    def check(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """One verdict per dtype; `met` is None where the run did not measure it."""
        wanted = (self.shape, *self.where, self.caches)
        here = [r for r in rows if (r["shape"], r["pass"], r["buffers"], r["caches"]) == wanted]
        dtypes = [self.dtype] if self.dtype else sorted({r["dtype"] for r in here}) or ["any"]
        where = (*self.where, "warm caches" if self.caches == "warm" else "")
        out = []
        for dtype in dtypes:
            value, beside = self._value([r for r in here if r["dtype"] == dtype])
            met = None
            if value is not None:
                met = value <= self.bound if self.metric in AT_MOST else value >= self.bound
            out.append(
                {"shape": self.shape, "dtype": dtype, "pass": " ".join(filter(None, where))}
                | {"label": self.label, "value": value, "bound": self.bound, "met": met}
                | {"sense": "<=" if self.metric in AT_MOST else ">=", "beside": beside}
            )
        return out

    def _value(self, rows: list[dict[str, Any]]) -> tuple[float | None, str]:
        ran = [row for row in rows if row["refusal"] is None]
        ours = [r for r in ran if r["role"] == "ours" and self.ours in r["provider"]]
        if not ours:
            return None, ""
        if self.metric in _OF_PEERS:
            theirs = [r for r in ran if r["role"] == "peer"]
            theirs = [r for r in theirs if r["provider"].startswith(self.against or "")]
            values = [(_OF_PEERS[self.metric](r, ours[0]), r["provider"]) for r in theirs]
            return min((v for v in values if v[0] is not None), default=(None, ""))
        if self.metric == "beside":
            beside = ours[0]["beside"].items()
            value = next((v for name, v in beside if name.startswith(self.against or "")), None)
            return value, ours[0]["provider"]
        return _OF_OURS.get(self.metric, _field(self.metric))(ours[0]), ours[0]["provider"]


def _field(name: str) -> Callable[..., float | None]:
    return lambda row, _ours=None: row[name]


def _peaks(peer: dict[str, Any], ours: dict[str, Any]) -> float | None:
    both = peer["peak_bytes"], ours["peak_bytes"]
    return None if None in both else both[0] / max(both[1], 1)


def _memory(row: dict[str, Any]) -> float | None:
    return None if row["peak_bytes"] is None else 1 + row["peak_bytes"] / row["input_bytes"]


def _beyond(row: dict[str, Any]) -> float | None:
    return None if row["beyond_bytes"] is None else row["beyond_bytes"] / 2**20


_OF_PEERS = {"ratio": _field("ratio"), "peak_ratio": _peaks}
_OF_OURS = {"memory": _memory, "beyond_mib": _beyond}
