"""The report: one HTML file with its pictures inside, made from the graphs alone."""

from __future__ import annotations

import base64
import io
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from system import STUDIES

mpl.use("Agg")
import matplotlib.pyplot as plt

INK, BLUE, ORANGE, GREY = "#222222", "#2166ac", "#d6604d", "#b0b0b0"
FOREST = 60  # hypotheses in the forest plot, at the most


def counts(graph: Any) -> dict[str, int]:
    found = [data for _, data in graph.nodes(data=True) if data["kind"] == "hypothesis"]
    accepted = [one for one in found if one["accepted"]]
    return {
        "tests": graph.graph["tests"],
        "hypotheses": len(found),
        "accepted": len(accepted),
        "testable": sum(one["held_out"] is not None for one in accepted),
        "replicated": sum(one["replicated"] for one in accepted),
    }


def write(graphs: dict[str, Any], folder: Path, fdr: float) -> Path:
    """report.html, and the pictures beside it as PNG."""
    studies = []
    for name, graph in graphs.items():
        pictures = {}
        for kind, draw in (("forest", forest), ("volcano", volcano), ("graph", network)):
            figure = draw(graph, STUDIES[name])
            figure.savefig(folder / f"{name}-{kind}.png", dpi=110, bbox_inches="tight")
            pictures[kind] = _inline(figure)
            plt.close(figure)
        rows = [{"id": n, **d} for n, d in graph.nodes(data=True) if d["kind"] == "hypothesis"]
        rows.sort(key=lambda row: (-row["replicated"], -row["accepted"], row["q"]))
        found = counts(graph)
        directions = [{"id": n, **d} for n, d in graph.nodes(data=True) if d["kind"] == "direction"]
        refused = [d["why"] for _, d in graph.nodes(data=True) if d["kind"] == "refused"]
        studies.append({"name": name, "study": STUDIES[name], "counts": found,
                        "pictures": pictures, "rows": rows, "directions": directions,
                        "refused": refused, "cohorts": graph.graph["cohorts"],
                        "best": [claim(row) for row in rows if row["replicated"]][:8],
                        "shown": min(found["accepted"], FOREST)})  # fmt: skip
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(short=_short, interval=_interval, code=_code, claim=claim)
    path = folder / "report.html"
    page = environment.from_string((Path(__file__).with_name("report.html.j2")).read_text())
    told = {name: version(name) for name in ("logpi", "scipy", "statsmodels", "SurvSet")}
    path.write_text(page.render(studies=studies, fdr=fdr, versions=told), encoding="utf-8")
    return path


# ---- pictures -----------------------------------------------------------------------------------


def forest(graph: Any, study: Any) -> Any:
    """Accepted hypotheses by outcome, smallest q first: estimate and interval in both cohorts."""
    rows = [d for _, d in graph.nodes(data=True) if d["kind"] == "hypothesis" and d["accepted"]]
    rows = sorted(rows, key=lambda row: row["q"])[:FOREST]
    rows.sort(key=lambda row: (row["hypothesis"]["entity_b"], row["hypothesis"]["group"]))
    scales = sorted({row["discovery"]["scale"] for row in rows}) or ["hazard ratio"]
    by_scale = [[r for r in rows if r["discovery"]["scale"] == scale] for scale in scales]
    tallest = max(4, *map(len, by_scale))
    figure, axes = plt.subplots(1, len(scales), squeeze=False,
                                figsize=(6.4 * len(scales), 0.32 * tallest + 1.4))  # fmt: skip
    for axis, scale, chosen in zip(axes[0], scales, by_scale, strict=True):
        for y, row in enumerate(chosen):
            for shift, key, color in ((-0.13, "discovery", BLUE), (0.13, "held_out", ORANGE)):
                if (one := row[key]) is None:
                    continue
                if one["low"] is not None:
                    axis.plot([one["low"], one["high"]], [y + shift] * 2, color=color, lw=1.6)
                axis.plot(one["estimate"], y + shift, "o", color=color, ms=4.5,
                          mfc=color if key == "discovery" or row["replicated"] else "white",
                          )  # fmt: skip
        axis.axvline(1 if scale.endswith("ratio") else 0, color=GREY, lw=1, zorder=0)
        if scale.endswith("ratio"):
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%.2g"))
            axis.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
            low, high = axis.get_xlim()
            ticks = [t for t in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16) if low <= t <= high]
            axis.set_xticks(ticks)
        axis.set_yticks(range(len(chosen)), [claim(row) for row in chosen], fontsize=8)
        axis.set_ylim(max(len(chosen), 1) - 0.4, -0.6)
        known = any(row["discovery"]["low"] is not None for row in chosen)
        axis.set_xlabel(f"{scale}, {'95 % interval' if known else 'no interval known'}")
        axis.spines[["top", "right"]].set_visible(False)
    for color, label, fill in ((BLUE, study.discovery, BLUE), (ORANGE, study.held_out, ORANGE),
                               (ORANGE, "not replicated", "white")):  # fmt: skip
        axes[0][0].plot([], [], "o", color=color, mfc=fill, label=label)
    figure.legend(frameon=False, fontsize=8, loc="upper center", ncols=3)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    return figure


def volcano(graph: Any, study: Any) -> Any:
    """Every test that was made, by effect and p; those behind accepted hypotheses by name."""
    results = [(n, d) for n, d in graph.nodes(data=True) if d["kind"] == "result"]
    figure, axis = plt.subplots(figsize=(7.2, 4.4))
    behind = {}
    for name, data in graph.nodes(data=True):
        if data["kind"] == "hypothesis" and data["accepted"]:
            for result in graph.predecessors(name):
                if graph.nodes[result]["kind"] == "result":
                    behind[result] = data["replicated"]
    for color, label, chosen in (
        (GREY, f"the rest of {len(results)} tests", [d for n, d in results if n not in behind]),
        (BLUE, "accepted", [d for n, d in results if behind.get(n) is False]),
        (ORANGE, "accepted and replicated", [d for n, d in results if behind.get(n)]),
    ):
        axis.scatter([d["effect"] for d in chosen], [_log(d["p"]) for d in chosen], s=12, c=color,
                     label=label, lw=0)  # fmt: skip
    told = sorted((graph.nodes[n] for n in behind), key=lambda d: d["p"])
    names: set[str] = set()
    near: list[tuple[float, float]] = []
    top = math.sqrt(max([_log(d["p"]) for _, d in results], default=1.0))
    wide = 2 * max([abs(d["effect"]) for _, d in results], default=1.0)
    for data in told:
        entity = data["hypothesis"]["entity_a"]
        x, y = data["effect"], _log(data["p"])
        free = all(abs(x - a) > 0.25 * wide or abs(y**0.5 - b**0.5) > 0.05 * top for a, b in near)
        if entity not in names and free and len(names) < 14:
            near.append((x, y))
            label = f"{entity}, {data['hypothesis']['entity_b']}"
            axis.annotate(label, (x, y), fontsize=7, color=INK, ha="left" if x > 0 else "right",
                          va="center", xytext=(5 if x > 0 else -5, 0),
                          textcoords="offset points")  # fmt: skip
            names.add(entity)
    axis.margins(x=0.4)
    axis.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
    axis.set_ylim(0, 1.1 * top**2)
    axis.set_xlabel("effect in [−1, 1], its sign that of “more”")
    axis.set_ylabel("−log₁₀ p (scale: its root)")
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def network(graph: Any, study: Any) -> Any:
    """From directions to accepted hypotheses to what they are about; results are left out.

    Hypotheses stand beside the direction they came from, entities near their hypotheses.
    """
    nodes = graph.nodes
    accepted = [n for n, d in nodes(data=True) if d["kind"] == "hypothesis" and d["accepted"]]
    directions = [n for n, d in nodes(data=True) if d["kind"] == "direction"]
    source = {}
    for name in accepted:
        behind = [r for r in graph.predecessors(name) if nodes[r]["kind"] == "result"]
        from_ = [
            d for r in behind for d in graph.predecessors(r) if nodes[d]["kind"] == "direction"
        ]
        source[name] = from_[0] if from_ else ""  # a model may propose what no direction tried
    accepted.sort(key=lambda n: ([*directions, ""].index(source[n]), nodes[n]["q"]))
    level = {name: -(i + 0.5) / len(accepted) for i, name in enumerate(accepted)}
    about: dict[str, list[str]] = {}
    for name in accepted:
        about.setdefault(nodes[name]["hypothesis"]["entity_a"].partition("=")[0], []).append(name)
    entities = sorted(about, key=lambda e: -sum(level[n] for n in about[e]) / len(about[e]))
    places = {n: (1.0, y) for n, y in level.items()}
    end = 1.06 + 0.023 * max((len(claim(nodes[name])) for name in accepted), default=20)
    for x, column in ((0.0, directions), (end + 0.4, entities)):
        places |= {n: (x, -(i + 0.5) / len(column)) for i, n in enumerate(column)}
    figure, axis = plt.subplots(figsize=(3.13 * (end + 1.6), 0.24 * max(8, len(accepted)) + 1.2))
    for name in accepted:
        color, width = (ORANGE, 0.9) if nodes[name]["replicated"] else (GREY, 0.6)
        entity = nodes[name]["hypothesis"]["entity_a"].partition("=")[0]
        for a, b, from_x, to_x in ((source[name], name, 0.0, 1.0), (name, entity, end, end + 0.4)):
            if a in places:
                axis.plot([from_x, to_x], [places[a][1], places[b][1]], color=color, lw=width,
                          zorder=0)  # fmt: skip
    for name, (x, y) in places.items():
        node, left = nodes[name], x == 0
        if node["kind"] == "direction":
            label, color = f"{node['question'][:60]} ({node['test']})", "#8da0cb"
        elif node["kind"] == "hypothesis":
            label, color = claim(node), ORANGE if node["replicated"] else BLUE
        else:
            label, color = f"{name} ({len(about[name])})", "#66c2a5"
        axis.plot(x, y, "o", color=color, ms=5)
        axis.annotate(
            label,
            (x, y),
            fontsize=7.5,
            ha="right" if left else "left",
            va="center",
            color=INK,
            xytext=(-6 if left else 6, 0),
            textcoords="offset points",
        )
    for title, x in (("directions (test)", 0), ("accepted hypotheses", 1), ("about", end + 0.4)):
        axis.annotate(title, (x, 0.03), fontsize=9, ha="center", weight="bold")
    axis.set_xlim(-0.9, end + 0.7)
    axis.set_ylim(-1.02, 0.07)
    axis.axis("off")
    return figure


# ---- words --------------------------------------------------------------------------------------


def claim(row: dict[str, Any]) -> str:
    """A hypothesis in a line."""
    h = row["hypothesis"]
    up = h["direction"] == "+"
    said = {"differs_by": ("higher in", "lower in"),
            "correlates_with": ("rises with", "falls with"),
            "occurs_with": ("with", "without"),
            "predicts_hazard_of": ("shortens", "prolongs")}[h["relation"]]  # fmt: skip
    inside = f" in {', '.join(h['group'])}" if h["group"] else ""
    return f"{h['entity_a']} {said[0] if up else said[1]} {h['entity_b']}{inside}"


def _code(row: dict[str, Any], cohort: str) -> str:
    h = row["hypothesis"]
    told = ", ".join(repr(h[k]) for k in ("entity_a", "relation", "entity_b", "direction", "test"))
    return f"run_test(load({cohort!r}), Hypothesis({told}, {tuple(h['group'])!r}))"


def _short(value: float | None, probability: bool = False) -> str:
    if value is None:
        return "–"
    if value == 0 and probability:
        return "< 1e-300"  # below what a float64 holds
    return f"{value:.1e}" if value and abs(value) < 1e-3 else f"{value:.3g}"


def _interval(one: dict[str, Any] | None) -> str:
    if one is None:
        return "–"
    if one["low"] is None:
        return f"{one['estimate']:.2f}".replace("-", "−")
    return f"{one['estimate']:.2f} [{one['low']:.2f}, {one['high']:.2f}]".replace("-", "−")


def _log(p: float) -> float:
    return -math.log10(max(p, 1e-300))


def _inline(figure: Any) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
