"""The runs of all methods and seeds in one picture and one table, with the fitted law."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from logpi.diagnostics import EntropyLaw, fit_entropy_law

Runs = list[dict[str, Any]]  # of one method, one a seed
_MEASURED = {
    "accuracy": "greedy accuracy",
    "sampled_accuracy": "sampled accuracy",
    "solved": "solved at least once",
    "distinct": "distinct correct",
    "sampled_entropy": "entropy",
}


def law(runs: Runs) -> EntropyLaw | None:
    """R = -a e^H + b through every step of every seed; None where there is nothing to fit."""
    points = [(step["entropy"], step["reward"]) for run in runs for step in run["steps"]]
    if len(points) < 3:
        return None
    return fit_entropy_law(*(list(values) for values in zip(*points, strict=True)))


def table(results: dict[str, Runs]) -> str:
    """Markdown: means over the seeds, and their standard deviation, of what was measured at the end
    and of the law."""
    lines = [
        f"| method | {' | '.join(_MEASURED.values())} | a | ceiling b - a | R² |",
        "|---" * (len(_MEASURED) + 4) + "|",
    ]
    every = [run for runs in results.values() for run in runs]
    warm = list({run["seed"]: run["before"] for run in every}.values())
    lines.append(f"| warm-up | {' | '.join(_spread(warm, key) for key in _MEASURED)} | | | |")
    for method, runs in results.items():
        after = [run["after"] for run in runs]
        cells = [_spread(after, key) for key in _MEASURED]
        fitted = law(runs)
        if fitted:
            low, high = fitted.a_interval
            cells.append(f"{fitted.a:.2f} [{low:.2f}, {high:.2f}]")
            low, high = fitted.ceiling_interval
            cells.append(f"{fitted.ceiling:.2f} [{low:.2f}, {high:.2f}]")
            cells.append(f"{fitted.r_squared:.2f}")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(measured: list[dict[str, float]], key: str) -> str:
    values = [one[key] for one in measured]
    apart = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{apart}"


def plot(results: dict[str, Runs], path: Path, task: str) -> None:
    """Reward, entropy, and one against the other with the law; a line a method, mean of seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    reward, entropy, both = figure.subplots(1, 3)
    for number, (method, runs) in enumerate(results.items()):
        colour = f"C{number}"
        for axis, key in ((reward, "reward"), (entropy, "entropy")):
            curves = [[step[key] for step in run["steps"]] for run in runs]
            at = range(1, len(curves[0]) + 1)
            for curve in curves:
                axis.plot(at, curve, color=colour, alpha=0.2, linewidth=0.8)
            means = [mean(values) for values in zip(*curves, strict=True)]
            axis.plot(at, means, color=colour, label=method)
        points = [(step["entropy"], step["reward"]) for run in runs for step in run["steps"]]
        both.plot(*zip(*points, strict=True), ".", color=colour, alpha=0.25, markersize=3)
        if fitted := law(runs):
            low, high = min(fitted.entropy), max(fitted.entropy)
            along = [low + (high - low) * i / 50 for i in range(51)]
            equation = f"R = {-fitted.a:.2f} e^H {fitted.b:+.2f}"
            predicted = [fitted.predict(h) for h in along]
            both.plot(along, predicted, color=colour, label=f"{method}: {equation}")
    reward.set_ylabel("mean reward")
    entropy.set_ylabel("entropy, nats a token")
    both.set_xlabel("entropy, nats a token")
    both.set_ylabel("mean reward")
    for axis in (reward, entropy):
        axis.set_xlabel("generation")
        axis.legend(fontsize="small")
    if any(law(runs) for runs in results.values()):
        both.legend(fontsize="small")
    for axis in (reward, entropy, both):
        axis.grid(alpha=0.3)
    seeds = max(len(runs) for runs in results.values())
    figure.suptitle(f"{task}, mean of {seeds} seeds (thin: each)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
