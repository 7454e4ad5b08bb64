"""The runs of all seeds as a table, as curves, and one program before and after."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from charts import Entry

from logpi.rewards.code.flowchart import flowchart

Metrics = dict[str, Any]  # of one seed


def table(runs: list[Metrics]) -> str:
    """Markdown: before → after of each difficulty, of each seed, with 95 % intervals."""
    measures = [key for key in runs[0]["before"] if key.startswith("pass@")]
    lines = [
        "| seed | difficulty | " + " | ".join(measures) + " | greedy |",
        "|---" * (3 + len(measures)) + "|",
    ]
    for run in runs:
        before, after = run["before"], run["after"]
        for which in before["greedy"]:
            cells = [str(run["seed"]), which]
            cells += [
                f"{_estimate(before[key][which])} → {_estimate(after[key][which])}"
                for key in measures
            ]
            cells.append(f"{before['greedy'][which]:.0%} → {after['greedy'][which]:.0%}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _estimate(estimate: tuple[float, float, float]) -> str:
    value, low, high = estimate
    return f"{value:.0%} [{low:.0%}, {high:.0%}]"


def last_line(run: Metrics) -> str:
    steps = run["steps"]
    seconds = sum(step["step_time"] for step in steps)
    return (
        f"seed {run['seed']}: pass@1 {run['before']['pass@1']['all'][0]:.1%} -> "
        f"{run['after']['pass@1']['all'][0]:.1%}; sandbox "
        f"{sum(step['sandbox_seconds'] for step in steps) / seconds:.0%} of {seconds:.0f} s of GRPO"
    )


def plot(runs: list[Metrics], path: Path) -> None:
    """Reward and entropy by step, greedy passes on held-out charts, pass@k by difficulty."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 3.6), layout="constrained")
    reward, entropy, heldout, bars = figure.subplots(1, 4)
    for number, run in enumerate(runs):
        steps, style = run["steps"], {"color": f"C{number}", "label": f"seed {run['seed']}"}
        at = [step["step"] for step in steps]
        reward.plot(at, [step["reward"] for step in steps], **style)
        entropy.plot(at, [step["entropy"] for step in steps], **style)
        measured = [(0, run["before"]["greedy"]["all"])] + [
            (step["step"], step["heldout_passed"]) for step in steps if "heldout_passed" in step
        ]
        heldout.plot(*zip(*measured, strict=True), marker="o", markersize=3, **style)
    reward.set_ylabel("assertions that pass, sampled")
    entropy.set_ylabel("entropy, nats a token")
    heldout.set_ylabel("held-out charts solved, greedy")
    for axis in (reward, entropy, heldout):
        axis.set_xlabel("GRPO step")
        axis.grid(alpha=0.3)
    reward.legend(fontsize="small")
    measures = [key for key in runs[0]["before"] if key.startswith("pass@")]
    difficulties = list(runs[0]["before"]["greedy"])
    width = 0.8 / (2 * len(measures))
    for place, key in enumerate(measures):
        for when, alpha in (("before", 0.4), ("after", 1.0)):
            left = (2 * place + (when == "after")) * width - 0.4 + width / 2
            heights = [mean(run[when][key][d][0] for run in runs) for d in difficulties]
            bars.bar(
                [x + left for x in range(len(difficulties))], heights, width,
                color=f"C{place}", alpha=alpha, label=f"{key}, {when}",
            )  # fmt: skip
    bars.set_xticks(range(len(difficulties)), difficulties)
    bars.set_ylim(0, 1)
    bars.set_ylabel("mean of seeds")
    bars.legend(fontsize="x-small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def example(run: Metrics, entries: list[Entry], folder: Path) -> str | None:
    """A held-out chart that is solved after and was not before, as chart.png and as Markdown; the
    largest of medium difficulty, or of any. None: there is none."""
    before, after = run["before"], run["after"]
    solved = [
        place
        for place, (was, now) in enumerate(
            zip(before["greedy_passed"], after["greedy_passed"], strict=True)
        )
        if now and not was
    ]
    if not solved:
        return None
    place = max(
        solved,
        key=lambda i: (entries[i]["difficulty"] == "medium", len(entries[i]["answer"])),
    )
    flowchart(entries[place]["answer"]).draw(folder / "chart.png", dpi=80)
    parts = {"Before": before["greedy_texts"][place], "After": after["greedy_texts"][place]}
    return "\n".join(f"{when}:\n\n```python\n{text}\n```\n" for when, text in parts.items())
