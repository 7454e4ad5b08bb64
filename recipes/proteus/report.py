"""The report: one HTML file with its pictures inside, made from the graphs alone."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import networkx as nx
from system import STUDIES

mpl.use("Agg")
import matplotlib.pyplot as plt

INK, BLUE, ORANGE, GREY = "#222222", "#2166ac", "#d6604d", "#b0b0b0"


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
        directions = [{"id": n, **d} for n, d in graph.nodes(data=True) if d["kind"] == "direction"]
        refused = [d["why"] for _, d in graph.nodes(data=True) if d["kind"] == "refused"]
        studies.append({"name": name, "study": STUDIES[name], "counts": counts(graph),
                        "pictures": pictures, "rows": rows, "directions": directions,
                        "refused": refused})  # fmt: skip
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(short=_short, interval=_interval, code=_code, claim=claim)
    path = folder / "report.html"
    page = environment.from_string((Path(__file__).with_name("report.html.j2")).read_text())
    path.write_text(page.render(studies=studies, fdr=fdr), encoding="utf-8")
    return path


# ---- pictures -----------------------------------------------------------------------------------


def forest(graph: Any, study: Any) -> Any:
    """Accepted hypotheses, best first: effect and interval in both cohorts, by scale."""
    rows = [d for _, d in graph.nodes(data=True) if d["kind"] == "hypothesis" and d["accepted"]]
    scales = sorted({row["discovery"]["scale"] for row in rows}) or ["hazard ratio"]
    by_scale = [[r for r in rows if r["discovery"]["scale"] == scale][:14] for scale in scales]
    tallest = max(4, *map(len, by_scale))
    figure, axes = plt.subplots(1, len(scales), squeeze=False,
                                figsize=(6.4 * len(scales), 0.36 * tallest + 1.4))  # fmt: skip
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
            ticks = [t for t in (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10) if low <= t <= high]
            axis.set_xticks(ticks)
        axis.set_yticks(range(len(chosen)), [claim(row) for row in chosen], fontsize=8)
        axis.set_ylim(max(len(chosen), 1) - 0.4, -0.6)
        axis.set_xlabel(scale + (", 95 % interval" if scale != "rank-biserial correlation" else ""))
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
        (GREY, f"all {len(results)} tests", [d for n, d in results if n not in behind]),
        (BLUE, "accepted", [d for n, d in results if behind.get(n) is False]),
        (ORANGE, "accepted and replicated", [d for n, d in results if behind.get(n)]),
    ):
        axis.scatter([d["effect"] for d in chosen], [_log(d["p"]) for d in chosen], s=12, c=color,
                     label=label, lw=0)  # fmt: skip
    told = sorted((graph.nodes[n] for n in behind), key=lambda d: d["p"])
    names: set[str] = set()
    near: list[tuple[float, float]] = []
    top = max([_log(d["p"]) for _, d in results], default=1.0)
    for data in told:
        entity = data["hypothesis"]["entity_a"]
        x, y = data["effect"], _log(data["p"])
        free = all(abs(x - a) > 0.15 or abs(y - b) > 0.03 * top for a, b in near)
        if entity not in names and free and len(names) < 14:
            near.append((x, y))
            axis.annotate(entity, (data["effect"], _log(data["p"])), fontsize=7, color=INK,
                          xytext=(4, 2), textcoords="offset points")  # fmt: skip
            names.add(entity)
    axis.set_xlabel("effect in [−1, 1]")
    axis.set_ylabel("−log₁₀ p")
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def network(graph: Any, study: Any) -> Any:
    """What leads to what: directions, tools, accepted hypotheses and their entities; no results."""
    kept = {n for n, d in graph.nodes(data=True) if d["kind"] in ("direction", "tool")}
    kept |= {n for n, d in graph.nodes(data=True) if d["kind"] == "hypothesis" and d["accepted"]}
    shown: Any = nx.DiGraph()
    shown.add_nodes_from(kept)
    for name in sorted(kept):
        data = graph.nodes[name]
        for before in graph.predecessors(name):
            kind = graph.nodes[before]["kind"]
            if kind == "result":  # stands for the direction that it came from
                for source in graph.predecessors(before):
                    if graph.nodes[source]["kind"] == "direction":
                        shown.add_edge(source, name)
            elif kind in ("direction", "tool") or data["kind"] == "hypothesis":
                shown.add_edge(before, name)
    layers = {"direction": 0, "tool": 1, "entity": 2, "hypothesis": 3}
    colors = {"direction": "#8da0cb", "tool": GREY, "entity": "#66c2a5", "hypothesis": BLUE}
    places, labels = {}, {}
    for kind, layer in layers.items():
        ones = [n for n in shown if graph.nodes[n]["kind"] == kind]
        for i, name in enumerate(sorted(ones)):
            places[name] = (layer, -(i + 0.5) / len(ones))
            labels[name] = {"direction": lambda d: d["question"],
                            "hypothesis": claim}.get(kind, lambda d, n=name: n)(
                                graph.nodes[name])  # fmt: skip
    most = max(8, sum(graph.nodes[n]["kind"] == "hypothesis" for n in shown))
    figure, axis = plt.subplots(figsize=(13, 0.24 * most + 1.2))
    nx.draw_networkx_edges(shown, places, ax=axis, edge_color="#cccccc", width=0.6, arrows=False)
    for kind in layers:
        ones = [n for n in shown if graph.nodes[n]["kind"] == kind]
        shades = [ORANGE if graph.nodes[n].get("replicated") else colors[kind] for n in ones]
        nx.draw_networkx_nodes(shown, places, ones, ax=axis, node_size=40, node_color=shades)
    for name, (x, y) in places.items():
        side = "right" if graph.nodes[name]["kind"] == "direction" else "left"
        axis.annotate(labels[name], (x, y), fontsize=7, ha=side, va="center", color=INK,
                      xytext=(-6 if side == "right" else 6, 0),
                      textcoords="offset points")  # fmt: skip
    for title, x in (("directions", 0), ("tools", 1), ("entities", 2), ("hypotheses", 3)):
        axis.annotate(title, (x, 0.03), fontsize=9, ha="center", weight="bold")
    axis.set_xlim(-1.3, 4.2)
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


def _short(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1e}" if value and abs(value) < 1e-3 else f"{value:.3g}"


def _interval(one: dict[str, Any] | None) -> str:
    if one is None:
        return "–"
    if one["low"] is None:
        return f"{one['estimate']:.2f}"
    return f"{one['estimate']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"


def _log(p: float) -> float:
    return -math.log10(max(p, 1e-300))


def _inline(figure: Any) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
