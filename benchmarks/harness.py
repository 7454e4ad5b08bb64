"""Times providers against each other, whatever device they run on.

Providers take turns round by round in one process, so that a slow minute slows them all, and a
ratio is the median of per-round ratios. A provider that cannot run keeps its row, with the reason.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.devices import Device

TOTAL = "forward+backward"
# How many times its input's bytes a pass must move, at the least.
REPLAY = "graph replay"
MOVED = {"read": 1, "copy": 2, "forward": 1, "backward": 2, TOTAL: 3, REPLAY: 1}
LEAST_ROUNDS = ((0.2, 15), (1.0, 5), (5.0, 2))  # below these seconds a call; else 1


@dataclass(frozen=True)
class Provider:
    """One way to compute the op.

    Attributes:
        stages: pass to function; each takes what the one before returned (the first None).
        role: "ours", "peer", or "reference" (a read or copy of the same bytes; bare products).
        computes: what the result holds, for the table.
        prepare: run before every call, outside the clock.
        calls: how many calls one stage makes; times are divided by it.
        compiles: the first call compiles, and is no measure of cost or memory.
        refusal: why it cannot run, when that is known beforehand.
        beside: others of its group whose time the table divides its own by.
        returns: bytes of what it must hand back; its peak memory is also told without them.
        rounds: the fewest that will do; None: LEAST_ROUNDS says, by what a call costs.
        asks: what the case that made it needs to judge its result.
        warm: called once before every measured call, instead of on emptied caches.
    """

    name: str
    stages: dict[str, Callable[[Any], Any]]
    role: str = "peer"
    computes: str = ""
    prepare: Callable[[], None] | None = None
    calls: int = 1
    compiles: bool = False
    refusal: str | None = None
    beside: tuple[str, ...] = ()
    returns: int | None = None
    rounds: int | None = None
    asks: Any = None
    warm: bool = False


@dataclass(frozen=True)
class Group:
    """Providers that take turns. `buffers` says what they write gradients into, if they do; caches
    are "cold", or "warm": as the same call has left them."""

    name: str
    buffers: str
    providers: list[Provider]
    caches: str = "cold"

    def warm(self) -> Group:
        """The same from warm caches, where a small op costs what it computes and the interpreter,
        and not what it takes to fetch the code of both."""
        providers = [replace(provider, warm=True) for provider in self.providers]
        return replace(self, providers=providers, caches="warm")


@dataclass
class Record:
    """What was seen of one provider: nanoseconds by pass, then by round."""

    provider: Provider
    times: dict[str, dict[int, float]] = field(default_factory=dict)
    peak_bytes: int | None = None
    max_error: float | None = None
    refusal: str | None = None
    cost_ns: float = 0.0


def alternate(
    providers: Sequence[Provider],
    device: Device,
    *,
    budget_s: float = 4.0,
    max_rounds: int = 40,
    expected_peak: Callable[[Provider], float] = lambda _: 0.0,
    error_of: Callable[[Provider, Any], float | None] = lambda _provider, _result: None,
) -> list[Record]:
    """Rehearses every provider once or twice, then lets them take turns.

    Each gets an equal share of `budget_s` and no fewer rounds than it needs; who is slow sits some
    out, its own spread evenly over the run. The order rotates: nobody always follows the same one.
    """
    records = [Record(p, refusal=p.refusal) for p in providers]
    for record in records:
        _rehearse(record, device, expected_peak, error_of)
    runners = [record for record in records if record.refusal is None]
    if not runners:
        return records
    share_ns = budget_s * 1e9 / len(runners)
    wanted = []
    for record in runners:
        seconds = record.cost_ns / 1e9
        least = next((least for bound, least in LEAST_ROUNDS if seconds < bound), 1)
        least = least if record.provider.rounds is None else record.provider.rounds
        wanted.append(min(max_rounds, max(least, int(share_ns / record.cost_ns))))
    rounds = max(wanted)
    # Powers of two, so that any two meet in all the rounds of whoever has fewer.
    strides = [1 << (rounds // least).bit_length() - 1 for least in wanted]
    gc.disable()  # a collection would land on whoever has the turn
    try:
        for number in range(rounds):
            for turn in range(len(runners)):
                at = (number + turn) % len(runners)
                if (number + 1) % strides[at] == 0:
                    _, times = _timed(runners[at].provider, device)
                    for name, ns in times.items():
                        runners[at].times.setdefault(name, {})[number] = ns
    finally:
        gc.enable()
    return records


def _rehearse(record: Record, device: Device, expected_peak: Any, error_of: Any) -> None:
    if record.refusal is not None:
        return
    provider = record.provider
    needed, free = expected_peak(provider), device.free_bytes()
    if needed > 0.9 * free:
        record.refusal = f"needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
        return
    try:
        for _ in range(2):  # the second call is the measure: the first makes libraries' own buffers
            (result, times), record.peak_bytes = device.peak_bytes(lambda: _timed(provider, device))
            record.cost_ns = max(1.0, times.get(TOTAL, sum(times.values())) * provider.calls)
            record.max_error = error_of(provider, result)
            del result  # the next call's peak is its own
            if record.cost_ns > 8e9 and not provider.compiles:
                break
    except Exception as error:  # whatever a peer raises is its row in the table
        record.refusal = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        record.peak_bytes = record.max_error = None


def _run(provider: Provider) -> None:
    state = None
    for stage in provider.stages.values():
        state = stage(state)


def _timed(provider: Provider, device: Device) -> tuple[Any, dict[str, float]]:
    if provider.prepare is not None:
        provider.prepare()
    if provider.warm:
        _run(provider)
    device.synchronise()
    if not provider.warm:
        device.flush()
    state, stamps = None, [device.stamp()]
    for stage in provider.stages.values():
        state = stage(state)
        stamps.append(device.stamp())
    device.synchronise()
    times = {
        name: device.elapsed_ns(start, end) / provider.calls
        for name, start, end in zip(provider.stages, stamps, stamps[1:], strict=False)
    }
    if set(times) == {"forward", "backward"}:
        times[TOTAL] = device.elapsed_ns(stamps[0], stamps[-1]) / provider.calls
    return state, times


def fastest(candidates: dict[str, Callable[[], Any]], device: Device, rounds: int = 7) -> str:
    """The candidate with the lowest median time, all taking turns."""
    providers = [Provider(name, {"read": lambda _, f=f: f()}) for name, f in candidates.items()]
    records = alternate(providers, device, budget_s=1.0, max_rounds=rounds)
    usable = [record for record in records if record.refusal is None]
    return min(usable, key=lambda r: statistics.median(r.times["read"].values())).provider.name


def paired_ratio(numerator: dict[int, float], denominator: dict[int, float]) -> float | None:
    """Median of the ratios of the rounds in which both ran."""
    both = numerator.keys() & denominator.keys()
    return statistics.median(numerator[r] / denominator[r] for r in both) if both else None


def spread(times: dict[int, float]) -> tuple[float, float, float]:
    """The 20th, 50th and 80th percentile."""
    values = sorted(times.values())
    if len(values) == 1:
        return values[0], values[0], values[0]
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return cuts[1], statistics.median(values), cuts[7]


def rows(
    records: Sequence[Record],
    input_bytes: int,
    bytes_moved: Mapping[str, int] = MOVED,
    **case: Any,
) -> list[dict[str, Any]]:
    """The records as table rows, each compared with ours (the first of our rows that ran).

    `bytes_moved` is empty for an op bound by its products: bytes a second say nothing of it.
    """
    ran = [record for record in records if record.refusal is None]
    ours = next((record for record in ran if record.provider.role == "ours"), None)
    roofs = {
        name: next((r.times[name] for r in ran if name in r.times), {}) for name in ("read", "copy")
    }
    seen_of = {record.provider.name: record.times for record in ran}
    out = []
    for record in records:
        provider = record.provider
        row = {**case, "provider": provider.name, "role": provider.role}
        row |= {
            "computes": provider.computes,
            "refusal": record.refusal,
            "input_bytes": input_bytes,
        }
        passes = record.times
        if record.refusal is not None:
            whole = TOTAL if set(provider.stages) == {"forward", "backward"} else None
            passes = {name: {} for name in ([whole] if whole else provider.stages)}
        for name, times in passes.items():
            moved = bytes_moved.get(name)
            p20, p50, p80 = spread(times) if times else (None, None, None)
            against = ours.times.get(name) if ours and times else None
            of = {
                f"of_{roof}": _scaled(paired_ratio(seen, times), moved, MOVED[roof])
                for roof, seen in roofs.items()
            }
            others = {other: seen_of.get(other, {}).get(name, {}) for other in provider.beside}
            last = name == (TOTAL if TOTAL in passes else list(passes)[-1])
            peak = record.peak_bytes if last and provider.calls == 1 else None
            beyond = None if peak is None or provider.returns is None else peak - provider.returns
            out.append(
                {**row, "pass": name, "rounds": len(times), "p20_us": _us(p20), "us": _us(p50)}
                | {"p80_us": _us(p80), "ratio": paired_ratio(times, against) if against else None}
                | {"gb_s": moved * input_bytes / p50 if moved and p50 else None, **of}
                | {"beside": {other: paired_ratio(times, seen) for other, seen in others.items()}}
                | {"peak_bytes": peak, "beyond_bytes": None if beyond is None else max(0, beyond)}
                | {"max_error": record.max_error if last else None}
            )
    return out


def _us(ns: float | None) -> float | None:
    return None if ns is None else ns / 1e3


def _scaled(ratio: float | None, moved: int | None, roof: int) -> float | None:
    return None if ratio is None or moved is None else ratio * moved / roof
