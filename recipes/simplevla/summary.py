"""The runs of all variants and seeds in one table and one picture."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

Runs = list[dict[str, Any]]  # of one variant, one a seed


def interval(rate: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a binomial `rate` seen in `count` trials."""
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + (z / (2 * count)) ** 2)
    return centre - half, centre + half


def table(results: dict[str, Runs]) -> str:
    """Markdown, a row a run: held-out success before and after, and what it took."""
    lines = [
        "| variant | seed | cold start | after RL | episodes | groups kept | entropy "
        "| minutes | CPU minutes |",
        "|---" * 9 + "|",
    ]
    for variant, runs in results.items():
        for run in runs:
            steps = run["steps"]
            cells = [
                variant,
                str(run["seed"]),
                _rate(run["before"]["success"], run["heldout"]),
                _rate(run["after"]["success"], run["heldout"]),
                str(run["episodes"]),
                f"{mean(step['kept_groups'] for step in steps):.0%}",
                f"{steps[0]['entropy']:.2f} → {steps[-1]['entropy']:.2f}",
                f"{run['seconds'] / 60:.1f}",
                f"{run['cpu_seconds'] / 60:.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _rate(rate: float, count: int) -> str:
    low, high = interval(rate, count)
    return f"{rate:.1%} [{low:.1%}, {high:.1%}]"


def plot(results: dict[str, Runs], path: Path) -> None:
    """Held-out success, that of the rollouts, entropy: mean of the seeds, band of one standard
    deviation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    heldout, sampled, entropy = figure.subplots(1, 3)
    for number, (variant, runs) in enumerate(results.items()):
        measured = [
            [(0, run["before"]["success"])]
            + [
                (step["iteration"], step["heldout_success"])
                for step in run["steps"]
                if "heldout_success" in step
            ]
            for run in runs
        ]
        _band(heldout, measured, variant, f"C{number}", marker="o", markersize=3)
        for axis, key in ((sampled, "success"), (entropy, "entropy")):
            curves = [[(step["iteration"], step[key]) for step in run["steps"]] for run in runs]
            _band(axis, curves, variant, f"C{number}")
    heldout.set_ylabel("success on held-out starts, greedy")
    sampled.set_ylabel("success of the rollouts, sampled")
    entropy.set_ylabel("entropy, nats a token")
    for axis in (heldout, sampled):
        axis.set_ylim(0, 1)
    for axis in (heldout, sampled, entropy):
        axis.set_xlabel("iteration")
        axis.grid(alpha=0.3)
    heldout.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _band(
    axis: Any, curves: list[list[tuple[int, float]]], label: str, colour: str, **style: Any
) -> None:
    at = [x for x, _ in curves[0]]
    values = list(zip(*([y for _, y in curve] for curve in curves), strict=True))
    means = [mean(y) for y in values]
    seeds = f"{label}, {len(curves)} seed{'s' if len(curves) > 1 else ''}"
    axis.plot(at, means, color=colour, label=seeds, **style)
    if len(curves) > 1:
        apart = [stdev(y) for y in values]
        low = [m - s for m, s in zip(means, apart, strict=True)]
        high = [m + s for m, s in zip(means, apart, strict=True)]
        axis.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
