"""One set of rows, four faces: a table to read now, Markdown, JSON, and a picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
HEADERS = (
    "provider", "time", "p20 - p80 (rounds)", "x ours", "beside", "GB/s", "of read", "of copy",
    "peak / input", "beyond results", "max error",
)  # fmt: skip
NOTES = (
    "Times are medians. *x ours*: median of the per-round ratios to the first row of ours; above 1 "
    "is slower than ours. *beside*: the same against the row named: the bare products, or another "
    "way to call ours. *of read*, *of copy*: bytes a second as a fraction of the plain read's "
    "and the plain copy's, which took turns with everyone else, on the same buffer. "
    "*peak / input*: memory above the input at its highest, gradient included; *beyond results*: "
    "without what is handed back. "
    "*max error*: against float64, on {checked} rows: of log p and H, or of the gradients."
)
BUSY = 0.05  # above this share of CPU time elsewhere, times are the scheduler's
UNITS = (("s", 1e6), ("ms", 1e3), ("µs", 1.0))
COLOURS = {"ours": "#c8501e", "peer": "#4a6d8c", "reference": "#b5b5b5"}


def cells(row: Row) -> tuple[str, ...]:
    """A row as the table shows it; a refusal takes the place of the time."""
    name = row["provider"] + (" (log p only)" if row["computes"] == "log p" else "")
    if row["refusal"] is not None:
        return (name, f"did not run: {row['refusal']}", *[""] * (len(HEADERS) - 2))
    unit, scale = next((u, s) for u, s in UNITS if row["us"] >= s or s == 1.0)
    return (
        name,
        f"{row['us'] / scale:.4g} {unit}",
        f"{row['p20_us'] / scale:.4g} - {row['p80_us'] / scale:.4g} ({row['rounds']})",
        _number(row["ratio"], "{:.2f}x"),
        set_beside(row),
        _number(row["gb_s"], "{:.1f}"),
        _number(row["of_read"], "{:.0%}"),
        _number(row["of_copy"], "{:.0%}"),
        _number(row["peak_bytes"], "{:.2f}x", row["input_bytes"]) if row["rounds"] else "",
        _number(row.get("beyond_bytes"), "{:.1f} MiB", 2**20) if row["rounds"] else "",
        _number(row["max_error"], "{:.1e}"),
    )


def set_beside(row: Row) -> str:
    """Its time as a multiple of those it was set beside."""
    values = row.get("beside", {}).items()
    return ", ".join(f"{value:.3g}x {name}" for name, value in values if value is not None)


def _columns(members: list[Row]) -> list[int]:
    """Which of HEADERS somebody fills."""
    lines = [cells(row) for row in members]
    return [at for at in range(len(HEADERS)) if at < 2 or any(line[at] for line in lines)]


def sections(rows: list[Row]) -> Iterator[tuple[str, list[Row]]]:
    """The rows of each pass, as measured, under the read and copy they took turns with."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("model", "shape", "dtype", "group", "buffers", "caches"))
        groups.setdefault(key, []).append(row)
    for (model, shape, dtype, _, buffers, caches), members in groups.items():
        roofs = [row for row in members if row["role"] == "reference"]
        passes = dict.fromkeys(row["pass"] for row in members if row not in roofs)
        for name in passes:
            if name == "forward" and buffers and len(passes) > 1:
                continue  # the forward under a graph: in the JSON, and in the sum
            title = f"{model} {shape} {dtype}: {name}"
            title += f", {buffers}" if buffers else ""
            title += " gradient" if buffers and name != "forward" else ""
            title += ", warm caches" if caches == "warm" else ""
            # a roof of another kind stands everywhere, one of the same kind under its own pass
            over = [roof for roof in roofs if roof["pass"] == name or roof["pass"] not in passes]
            yield title, over + [r for r in members if r["pass"] == name and r not in roofs]


def verdict(check: Row) -> tuple[str, ...]:
    """A target as the table shows it."""
    word = {True: "met", False: "MISSED", None: "not measured"}[check["met"]]
    where = f"{check['shape']} {check['dtype']} {check['pass']}"
    value = _number(check["value"], "{:.3g}")
    return (
        where,
        check["label"],
        value,
        f"{check['sense']} {check['bound']:g}",
        word,
        check["beside"],
    )


def show(result: Mapping[str, Any]) -> None:
    """Tables on the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 160)
    for title, members in sections(result["rows"]):
        table = Table(title=title, title_justify="left", box=box.SIMPLE, title_style="bold")
        columns = _columns(members)
        for header in (HEADERS[at] for at in columns):
            number = header not in HEADERS[:1]
            table.add_column(header, justify="right" if number else "left", no_wrap=not number)
        refused = [row for row in members if row["refusal"] is not None]
        for row in members:
            if row["refusal"] is None:
                filled = (cells(row)[at] for at in columns)
                table.add_row(*filled, style="bold" if row["role"] == "ours" else None)
        console.print(table)
        for row in refused:
            console.print(f"    {': '.join(cells(row)[:2])}", markup=False, highlight=False)
    table = Table(title="acceptance", title_justify="left", box=box.SIMPLE, title_style="bold")
    for header in ("where", "number", "value", "target", "", "beside"):
        table.add_column(header)
    for check in result["acceptance"]:
        style = {True: "green", False: "red", None: "dim"}[check["met"]]
        table.add_row(*verdict(check), style=style)
    console.print(table)
    console.print("\n".join(_header(result)), markup=False, highlight=False)


def markdown(result: Mapping[str, Any]) -> str:
    """The same tables for a page."""
    lines = [f"# {result['op']} on {result['device']}", ""]
    lines += [f"- {line}" for line in _header(result)] + ["", NOTES.format(**result), ""]
    lines += ["## Acceptance", ""]
    lines += _grid(("where", "number", "value", "target", "verdict", "beside"),
                   [verdict(check) for check in result["acceptance"]])  # fmt: skip
    for title, members in sections(result["rows"]):
        columns = _columns(members)
        body = [tuple(cells(row)[at] for at in columns) for row in members]
        lines += ["", f"## {title}", "", *_grid(tuple(HEADERS[at] for at in columns), body)]
    return "\n".join(lines) + "\n"


def write(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """`<op>.json`, `.md` and `.png` in `folder`; runs with other memory settings lie beside."""
    folder.mkdir(parents=True, exist_ok=True)
    huge = result["memory"]["THP_MEM_ALLOC_ENABLE"] not in ("unset", "0")
    stem = result["op"] + ("-huge-pages" if huge else "")
    paths = [folder / f"{stem}{ending}" for ending in (".json", ".md", ".png")]
    paths[0].write_text(json.dumps(result, indent=1) + "\n")
    paths[1].write_text(markdown(result))
    draw(result, paths[2])
    return paths


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Bars of the largest shape: time by provider, a panel for each dtype and pass."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    timed = [row for row in result["rows"] if row["us"] and not row["pass"].startswith("call")]
    if not timed:
        return
    most = max(row["input_bytes"] for row in timed)
    shape = next(row["shape"] for row in timed if row["input_bytes"] == most)
    panels = list(sections([row for row in result["rows"] if row["shape"] == shape]))
    panels = [(title, bars) for title, bars in panels if ": backward" not in title]
    dtypes = list(dict.fromkeys(bars[-1]["dtype"] for _, bars in panels))
    across = max(sum(bars[-1]["dtype"] == dtype for _, bars in panels) for dtype in dtypes)
    figure, axes = plt.subplots(
        len(dtypes), across, figsize=(7.2 * across, 4.2 * len(dtypes)), squeeze=False
    )
    for line, dtype in zip(axes, dtypes, strict=True):
        here = [panel for panel in panels if panel[1][-1]["dtype"] == dtype]
        for axis in line[len(here) :]:
            axis.set_visible(False)
        for axis, (title, bars) in zip(line, here, strict=False):
            _bars(axis, title, [row for row in bars if row["us"] is not None])
    figure.suptitle(f"{result['op']} on {result['device']}: milliseconds, less is better")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bars(axis: Any, title: str, bars: list[Row]) -> None:
    bars = sorted(bars, key=lambda row: -row["us"])
    times = [row["us"] / 1e3 for row in bars]
    axis.barh([cells(row)[0] for row in bars], times, color=[COLOURS[r["role"]] for r in bars])
    axis.set_xscale("log")
    axis.set_xlim(min(times) / 3, max(times) * 6)
    for at, (row, time) in enumerate(zip(bars, times, strict=True)):
        beside = f"  ({row['ratio']:.1f}x)" if row["ratio"] and row["role"] == "peer" else ""
        axis.text(time * 1.08, at, cells(row)[1] + beside, va="center", fontsize=8)
    axis.set_title(title.replace(": ", "\n"), fontsize=10)
    axis.tick_params(axis="y", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def summary(result: Mapping[str, Any]) -> str:
    """A line a pass: our first row beside its roof and the best peer; then the targets."""
    lines = [f"{result['op']} on {result['device']}, tests {result['tests']}"]
    for title, members in sections(result["rows"]):
        ran = [row for row in members if row["refusal"] is None and row["role"] != "reference"]
        ours = next((row for row in ran if row["role"] == "ours"), None)
        if ours is None:
            continue
        peers = [row for row in ran if row["role"] == "peer" and row["ratio"] is not None]
        best = min(peers, key=lambda row: row["ratio"], default=None)
        against = f"{best['ratio']:.2f}x {best['provider']}" if best else "no peer ran"
        roof = _number(ours["of_copy"], "{:.0%} of copy") or set_beside(ours)
        cells_ = (title, ours["provider"], cells(ours)[1], roof, against)
        lines.append("{:<50.50} {:<18.18} {:>9} {:>12}  {}".format(*cells_))
    measured = [check for check in result["acceptance"] if check["met"] is not None]
    for where, label, value, bound, word, beside in map(verdict, measured):
        lines.append(f"{word:<6} {where:<42.42} {label:<26} {value:>7} {bound:<8} {beside}")
    lines.append(f"targets not measured: {len(result['acceptance']) - len(measured)}")
    if result["left_out"]:
        lines.append(f"left out for lack of time: {', '.join(result['left_out'])}")
    return "\n".join(lines)


def _header(result: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    pages = ", ".join(f"{name} {value}" for name, value in result["memory"].items())
    load = result["other_load"]
    quiet = load is not None and load < BUSY
    noise = "" if quiet else ": NOT A QUIET MACHINE, do not quote a time from this run"
    dirty = " with uncommitted changes" if result["dirty"] else ""
    before, after = result["gpu_state"]
    left_out = ", ".join(result["left_out"])
    return [
        *([f"nvidia-smi before: {before}; after: {after}"] if before else []),
        *([f"left out for lack of time: {left_out}"] if left_out else []),
        f"{result['device']}, ISA {result['isa']}, {result['date']}",
        f"commit {result['commit']}{dirty}; {versions}",
        f"tests before the run: {result['tests']}; memory: {pages}",
        f"CPU time other processes took meanwhile: {_number(load, '{:.0%}') or 'unknown'}{noise}",
        f"peak memory by {result['memory_method']}",
    ]


def _grid(headers: tuple[str, ...], body: list[tuple[str, ...]]) -> list[str]:
    rule = ["---"] + ["---:"] * (len(headers) - 1)
    lines = (headers, rule, *body)
    return ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]


def main() -> None:
    """`python -m benchmarks.report FILE.json..`: the summary of results that lie on disk."""
    for name in sys.argv[1:]:
        print(summary(json.loads(Path(name).read_text())))


def _number(value: float | None, form: str, over: float = 1.0) -> str:
    return "" if value is None else form.format(value / over)


if __name__ == "__main__":
    main()
