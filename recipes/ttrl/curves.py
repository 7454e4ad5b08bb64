"""The runs of both rewards and all seeds in one table and one picture."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

Runs = list[dict[str, Any]]  # of one reward, one a seed

_SETS = {"test": "test questions, trained on without labels", "heldout": "held-out questions"}
_VOTES = {
    "accuracy": "votes that are right: pass@1",
    "label_accuracy": "majorities that are right: maj@votes",
    "majority_ratio": "votes for the majority",
    "reward_accuracy": "rewards that are the true ones",
}


def table(results: dict[str, Runs]) -> str:
    """Markdown: per cent on both sets of questions, before and after each run."""
    count = next(iter(results.values()))[0]["settings"]["votes"]
    lines = [
        "| questions | seed | reward | greedy | pass@1 | "
        f"maj@{count} | pass@{count} | label_accuracy, first → last | CPU minutes |",
        "|---" * 9 + "|",
    ]
    for which in _SETS:
        for place, _ in enumerate(next(iter(results.values()))):
            for name, runs in results.items():
                run = runs[place]
                cells = [which, str(run["seed"]), name]
                for key in ("greedy", "pass@1", "maj@n", "pass@n"):
                    before, after = (run[at][f"{which}_{key}"] for at in ("before", "after"))
                    cells.append(f"{100 * before:.1f} → {100 * after:.1f}")
                steps, tenth = run["steps"], max(len(run["steps"]) // 10, 1)
                ends = (mean(s["label_accuracy"] for s in part) for part in
                        (steps[:tenth], steps[-tenth:]))  # fmt: skip
                cells.append(" → ".join(f"{100 * end:.1f}" for end in ends))
                cells.append(f"{run['cpu_seconds'] / 60:.1f}")
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(results: dict[str, Runs], path: Path) -> None:
    """Greedy accuracy beside the warm model's maj@n, and what the votes were worth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    (*measured, first), others = figure.subplots(2, 3)
    for number, (name, runs) in enumerate(results.items()):
        for place, run in enumerate(runs):
            lines = ("-", "--", ":", "-.")[place % 4]
            style = {"color": f"C{number}", "linestyle": lines, "label": f"{name}, {run['seed']}"}
            for axis, which in zip(measured, _SETS, strict=True):
                axis.plot(*_greedy(run, which), marker="o", markersize=3, **style)
                bar = run["before"][f"{which}_maj@n"]
                axis.axhline(bar, color="grey", linewidth=0.8, linestyle=lines)
            for axis, key in zip([first, *others], _VOTES, strict=True):
                axis.plot(*_smooth(run["steps"], key), **style)
    for axis, title in zip(measured, _SETS.values(), strict=True):
        axis.set_title(title, fontsize="medium")
        axis.set_ylabel("greedy accuracy; grey: maj@n before")
    for axis, (key, title) in zip([first, *others], _VOTES.items(), strict=True):
        axis.set_title(title, fontsize="medium")
        axis.set_ylabel(f"{key}, mean of 5 steps")
    for axis in (*measured, first, *others):
        axis.set_xlabel("GRPO step")
        axis.grid(alpha=0.3)
    measured[0].legend(title="reward, seed", fontsize="x-small")
    figure.savefig(path, dpi=100)


def _greedy(run: dict[str, Any], which: str) -> tuple[list[int], list[float]]:
    key = f"{which}_greedy"
    steps = [step for step in run["steps"] if key in step]
    return [0, *(s["step"] for s in steps)], [run["before"][key], *(s[key] for s in steps)]


def _smooth(steps: list[dict[str, Any]], key: str, width: int = 5) -> tuple[list[int], list[float]]:
    at, values = [], []
    for start in range(0, len(steps), width):
        part = steps[start : start + width]
        at.append(part[-1]["step"])
        values.append(mean(step[key] for step in part))
    return at, values
