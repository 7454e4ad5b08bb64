"""The report: tables, pictures and examples in one HTML file, made from the numbers alone."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import jinja2
from matplotlib.figure import Figure

INK, BLUE, ORANGE, GREEN, GREY = "#222222", "#2166ac", "#d6604d", "#1b7837", "#b0b0b0"
METRICS = ("ti", "tc", "ai", "ac")
Results = dict[int, dict[str, Any]]  # of each seed, what run.py measured
STRATEGIES = ("level", "average", "random")
ABLATIONS = ("level", "no partition", "no recall: a draw", "level, fewer sentences",
             "no recall: all types")  # fmt: skip
OTHERS = ("level", "level, plain union", "level, recall by name", "level, both recalls")
UNSEEN = {"nothing": "nothing held out", "verb": "a verb new to its domain",
          "frame": "a new clause frame", "type": "a zero-shot type"}  # fmt: skip


def write(results: Results, settings: dict[str, Any], folder: Path) -> Path:
    """report.html, and its pictures beside it as PNG."""
    pictures = {}
    for name, draw in (("summary", summary), ("annotation", annotation)):
        figure = draw(results, settings)
        figure.savefig(folder / f"{name}.png", dpi=110)
        pictures[name] = _inline(figure)
    first = results[min(results)]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(Path(__file__).with_name("report.html.j2").read_text())
    extraction = [
        (title, [(name, *_row(results, name)) for name in names])
        for title, names in (("Partition", STRATEGIES), ("Ablations", ABLATIONS),
                             ("Other choices", OTHERS))
    ]  # fmt: skip
    held_out = [(label, *_row(results, name, "held out")) for name, label in UNSEEN.items()]
    path = folder / "report.html"
    path.write_text(
        page.render(results=results, settings=settings, pictures=pictures, extraction=extraction,
                    held_out=held_out, examples=first["examples"]["found"], spread=_spread,
                    recall=_recall_rows(results), labels=[r["labels"]["found"] for r in
                    results.values()], minutes=_minutes(results), over=_over(results),
                    weights=first["weights"]), encoding="utf-8")  # fmt: skip
    return path


def table(results: Results) -> str:
    """Markdown: F1 of all variants, mean and standard deviation of the seeds."""
    names = dict.fromkeys((*STRATEGIES, *ABLATIONS, *OTHERS))
    lines = ["| variant | sentences | TI | TC | AI | AC | TC precision | TC recall |",
             "|---" * 8 + "|"]  # fmt: skip
    lines += [f"| {' | '.join([name, *_row(results, name)])} |" for name in names]
    lines += ["", "| held out | sentences | TI | TC | AI | AC | TC precision | TC recall |",
              "|---" * 8 + "|"]  # fmt: skip
    lines += [f"| {' | '.join([label, *_row(results, name, 'held out')])} |"
              for name, label in UNSEEN.items()]  # fmt: skip
    lines += ["", "| recall | of | @1 | @5 | @10 | @20 | @50 |", "|---" * 7 + "|"]
    lines += [f"| {' | '.join(row)} |" for row in _recall_rows(results)]
    return "\n".join(lines)


def _row(results: Results, name: str, group: str = "") -> list[str]:
    runs = [run[group] if group else run for run in map(_extracted, results.values())]
    runs = [run[name] for run in runs]
    cells = [_spread([run[metric]["f1"] for run in runs]) for metric in METRICS]
    cells += [_spread([run["tc"][key] for run in runs]) for key in ("precision", "recall")]
    return [str(round(mean(run["sentences"] for run in runs))), *cells]


def _extracted(run: dict[str, Any]) -> dict[str, Any]:
    return {**run["extraction"]["found"], **run["ablations"]["found"]}


def _recall_rows(results: Results) -> list[list[str]]:
    told = [run["recall"]["found"] for run in results.values()]
    return [
        [method, of, *(_spread([one[method][of][str(k)] for one in told]) for k in
                       (1, 5, 10, 20, 50))]
        for method in told[0] for of in told[0][method]
    ]  # fmt: skip


def _spread(values: list[float]) -> str:
    """Percent, and the standard deviation over seeds if there are some."""
    apart = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{apart}"


def _minutes(results: Results) -> list[tuple[str, float, float]]:
    stages = ("recall training", "training", "recall", "extraction", "ablations", "by_types",
              "labels", "examples")  # fmt: skip
    return [(stage, mean(run[stage]["seconds"] for run in results.values()),
             mean(run[stage]["cpu"] for run in results.values())) for stage in stages]  # fmt: skip


def _over(results: Results) -> Callable[..., str]:
    """A number of `labels`, by its path, over the seeds."""

    def over(*path: str, percent: bool = True) -> str:
        values = []
        for run in results.values():
            value = run["labels"]["found"]
            for key in path:
                value = value[key]
            values.append(float(value))
        if percent:
            return _spread(values)
        digits = 0 if all(value.is_integer() for value in values) else 2  # a count, or κ
        apart = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{mean(values):.{digits}f}{apart}"

    return over


# ---- pictures -----------------------------------------------------------------------------------


def summary(results: Results, settings: dict[str, Any]) -> Figure:
    """F1 by the number of types, recall@k, and TC F1 of every variant."""
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    by_types, recall, bars = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    runs = list(results.values())
    for (name, marker), color in zip((("level", "o"), ("no partition", "s"),
                                      ("no recall: a draw", "^")), (BLUE, GREEN, ORANGE),
                                     strict=True):  # fmt: skip
        curves = [run["by_types"]["found"][name] for run in runs]
        label = "recall, level" if name == "level" else name
        _band(by_types, [int(k) for k in curves[0]], [list(c.values()) for c in curves],
              label=label, color=color, marker=marker)  # fmt: skip
    by_types.set(xscale="log", xlabel="types in the inventory", ylabel="F1 of trigger and type",
                 title="F1 by the number of types", ylim=(0, 1))  # fmt: skip
    ticks = [int(k) for k in runs[0]["by_types"]["found"]["level"]]
    by_types.set_xticks(ticks, [str(k) for k in ticks])
    for name, color in (("MaxSim", BLUE), ("candidate_log_probs", GREEN), ("both", INK),
                        ("random", GREY)):  # fmt: skip
        for of, dash in (("all types", "-"), ("zero-shot types", ":")):
            if name == "random" and dash == ":":
                continue
            curves = [run["recall"]["found"][name][of] for run in runs]
            _band(recall, [int(k) for k in curves[0]], [list(c.values()) for c in curves],
                  label=name if dash == "-" else "", color=color, linestyle=dash)  # fmt: skip
    recall.plot([], [], color=INK, linestyle=":", label="zero-shot types")
    recall.axvline(settings["top_k"], color=GREY, lw=1, zorder=0)
    recall.set(xscale="log", xlabel="k; the line is what is asked about", ylabel="recall@k",
               title=f"Recall among {settings['types']} types", ylim=(0, 1.01))  # fmt: skip
    recall.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    for axis in (by_types, recall):
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    names = [*STRATEGIES, *ABLATIONS[1:3], *ABLATIONS[3:], *OTHERS[1:]]
    colors = [BLUE] * 3 + [ORANGE] * 2 + [GREY, ORANGE] + [GREEN] * 3
    values = [[_extracted(run)[name]["tc"]["f1"] for run in runs] for name in names]
    bars.barh(names, [mean(v) for v in values], color=colors, height=0.7,
              xerr=[stdev(v) for v in values] if len(runs) > 1 else None,
              error_kw={"ecolor": INK, "lw": 1})  # fmt: skip
    for y, value in enumerate(values):
        bars.annotate(_spread(value), (0.01, y), va="center", fontsize=8, color="white"
                      if mean(value) > 0.25 else INK)  # fmt: skip
    bars.invert_yaxis()
    bars.set(xlim=(0, 1), xlabel="F1 of trigger and type", title="Variants")
    for axis in (by_types, recall, bars):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def annotation(results: Results, settings: dict[str, Any]) -> Figure:
    """Accuracy of each annotator and of the vote; agreement; what the labels are worth."""
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    alone, kappas, worth = figure.subplots(1, 3)
    runs = [run["labels"]["found"] for run in results.values()]
    names = runs[0]["annotators"]
    for shift, stage, color, label in ((-0.19, "triggers", BLUE, "is it a trigger?"),
                                       (0.19, "types", ORANGE, "which type?")):  # fmt: skip
        accuracies = [mean(run[stage]["alone"][n] for run in runs) for n in names]
        accuracies.append(mean(run[stage]["vote"] for run in runs))
        places = [i + shift for i in range(len(accuracies))]
        alone.bar(places, accuracies, 0.36, color=color, label=label)
        for place, value in zip(places, accuracies, strict=True):
            alone.annotate(f"{value:.2f}", (place, value + 0.01), ha="center", fontsize=7)
    alone.set_xticks(range(len(names) + 1), [*names, "vote"])
    alone.set(ylabel="accuracy", title="Annotators, and their vote", ylim=(0, 1.15))
    alone.legend(frameon=False, fontsize=8, ncols=2, loc="upper left")

    pairs = list(runs[0]["types"]["cohen"])
    matrix = [[float("nan")] * len(names) for _ in names]
    for pair in pairs:
        a, b = (names.index(name) for name in pair.split(", "))
        matrix[a][b] = mean(run["triggers"]["cohen"][pair] for run in runs)
        matrix[b][a] = mean(run["types"]["cohen"][pair] for run in runs)
    kappas.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    for a, row in enumerate(matrix):
        for b, value in enumerate(row):
            if a != b:
                kappas.annotate(f"{value:.2f}", (b, a), ha="center", va="center",
                                color="white" if value > 0.6 else INK)  # fmt: skip
    for set_ticks in (kappas.set_xticks, kappas.set_yticks):
        set_ticks(range(len(names)), names)
    kappas.set_title("Cohen's κ: triggers above, types below")

    stages = list(runs[0]["labels"])
    for shift, key, color in ((-0.27, "precision", GREY), (0, "recall", BLUE), (0.27, "f1", INK)):
        values = [mean(run["labels"][stage][f"tc_{key}"] for run in runs) for stage in stages]
        worth.bar([i + shift for i in range(len(stages))], values, 0.25, color=color, label=key)
        for i, value in enumerate(values):
            worth.annotate(f"{value:.2f}", (i + shift, value + 0.01), ha="center", fontsize=7)
    worth.set_xticks(range(len(stages)), stages)
    worth.set(title="The labels, trigger and type", ylim=(0, 1.15))
    worth.legend(frameon=False, fontsize=8, ncols=3, loc="upper left")
    for axis in (alone, worth):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _band(axis: Any, at: list[int], curves: list[list[float]], **style: Any) -> None:
    values = list(zip(*curves, strict=True))
    axis.plot(at, [mean(v) for v in values], markersize=4, **style)
    if len(curves) > 1:
        axis.fill_between(at, [min(v) for v in values], [max(v) for v in values], alpha=0.15,
                          color=style["color"], linewidth=0)  # fmt: skip


def _inline(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
