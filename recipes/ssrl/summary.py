"""All variants and seeds in one picture and one table."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

Runs = list[dict[str, Any]]  # of one variant, one a seed
_MEASURED = {
    "searches": "searches",
    "asked": "asked of the index",
    "untrue": "untrue information",
}
_SOURCES = {
    "sampled": "self-search, at temperature 1",
    "memory": "self-search",
    "index": "sim-to-real: the index",
    "guided": "sim-to-real: by entropy",
}


def table(results: dict[str, Runs]) -> str:
    """Markdown: means over the seeds and their standard deviation, a row a source of information.

    Searches, questions to the index and untrue information are a question's.
    """
    names = [f"{name}, {hops}" for name in ("EM", "F1") for hops in ("one hop", "two hops")]
    names += [f"{name} (two hops)" for name in _MEASURED.values()]
    lines = [f"| after | information | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    every = [run for runs in results.values() for run in runs]
    warm = list({run["seed"]: run["before"] for run in every}.values())
    measured = {"warm-up": warm}
    measured |= {variant: [run["after"] for run in runs] for variant, runs in results.items()}
    for model, found in measured.items():
        for source, words in _SOURCES.items():
            cells = [
                _spread([one[source][hops][key] for one in found])
                for key in ("em", "f1")
                for hops in ("1", "2")
            ]
            cells += [_spread([one[source]["2"][key] for one in found]) for key in _MEASURED]
            lines.append(f"| {model} | {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rollouts(results: dict[str, Runs], steps: int = 10) -> str:
    """Markdown: what training itself saw, sampled at temperature 1: first and last few steps."""
    lines = ["| variant | seed | EM | form | searches | entropy | CPU minutes |", "|---" * 7 + "|"]
    for variant, runs in results.items():
        for run in runs:
            cells = []
            for key in ("em", "format", "searches", "entropy"):
                ends = run["steps"][:steps], run["steps"][-steps:]
                cells.append(" → ".join(f"{mean(step[key] for step in end):.2f}" for end in ends))
            minutes = f"{run['cpu_seconds'] / 60:.1f}"
            lines.append(f"| {variant} | {run['seed']} | {' | '.join(cells)} | {minutes} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    apart = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{apart}"


def plot(results: dict[str, Runs], path: Path) -> None:
    """Held-out exact match by hops, dotted at temperature 1; reward and searches of the rollouts.

    A line a seed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 3.6), layout="constrained")
    one, two, reward, searches = figure.subplots(1, 4)
    for number, (variant, runs) in enumerate(results.items()):
        for run in runs:
            style = {"color": f"C{number}", "alpha": 0.8}
            if run is runs[0]:
                style["label"] = f"{variant}, {len(runs)} seed{'s' if len(runs) > 1 else ''}"
            for axis, hops in ((one, "1"), (two, "2")):
                for source, key, line in (("memory", "heldout", "-"), ("sampled", "sampled", ":")):
                    at = [(0, run["before"][source][hops]["em"])]
                    at += [(s["step"], s[key][hops]["em"]) for s in run["steps"] if key in s]
                    axis.plot(*zip(*at, strict=True), line, marker="o", markersize=3, **style)
                    style.pop("label", None)
            for axis, key in ((reward, "reward"), (searches, "searches")):
                axis.plot(*zip(*((s["step"], s[key]) for s in run["steps"]), strict=True), **style)
    for axis, hops in ((one, "one hop"), (two, "two hops")):
        axis.set_ylabel(f"exact match, held out, {hops}")
        axis.set_ylim(0, 1)
    reward.set_ylabel("reward of the rollouts")
    searches.set_ylabel("searches a rollout")
    for axis in (one, two, reward, searches):
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    one.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
