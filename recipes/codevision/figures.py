"""The runs of all seeds as a table, as curves, and one program before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from charts import Entry

from logpi.rewards.code.flowchart import flowchart

Metrics = dict[str, Any]  # of one seed


def table(runs: list[Metrics]) -> str:
    """Markdown: before → after of each difficulty of each seed with 95 % intervals, and the change
    of pass@1 chart by chart; below, the means of the seeds."""
    measures = [key for key in runs[0]["before"] if key.startswith("pass@")]
    lines = [
        f"| difficulty | seed | {measures[0]} | change | {' | '.join(measures[1:])} | greedy |",
        "|---" * (4 + len(measures)) + "|",
    ]
    for which in runs[0]["before"]["greedy"]:
        for run in runs:
            told = [
                " → ".join(_estimate(run[when][key][which]) for when in ("before", "after"))
                for key in measures
            ]
            greedy = " → ".join(f"{run[when]['greedy'][which]:.0%}" for when in ("before", "after"))
            cells = [which, str(run["seed"]), told[0], _change(run, which), *told[1:], greedy]
            lines.append(f"| {' | '.join(cells)} |")
        if len(runs) > 1:
            told = [_means(runs, key, which) for key in (*measures, "greedy")]
            lines.append(f"| {' | '.join([which, 'mean', told[0], '', *told[1:]])} |")
    return "\n".join(lines)


def _estimate(estimate: tuple[float, float, float]) -> str:
    value, low, high = estimate
    return f"{value:.0%} [{low:.0%}, {high:.0%}]"


def _change(run: Metrics, which: str) -> str:
    """Points of pass@1, with the 95 % interval of the mean of the charts' differences."""
    samples = run["settings"]["samples"]
    places = [i for i, d in enumerate(run["before"]["difficulty"]) if which in (d, "all")]
    was, now = (run[when]["num_correct"] for when in ("before", "after"))
    gains = [100 * (now[i] - was[i]) / samples for i in places]
    return f"{fmean(gains):+.1f} ± {1.96 * stdev(gains) / len(gains) ** 0.5:.1f}"


def _means(runs: list[Metrics], key: str, which: str) -> str:
    def value(found: float | Sequence[float]) -> float:
        return found if isinstance(found, float) else found[0]

    told = (fmean(value(run[when][key][which]) for run in runs) for when in ("before", "after"))
    return " → ".join(f"**{mean:.0%}**" for mean in told)


def last_line(run: Metrics) -> str:
    steps = run["steps"]
    seconds = sum(step["step_time"] for step in steps)
    return (
        f"seed {run['seed']}: {len(run['warmup_losses'])} steps of warm-up; pass@1 "
        f"{run['before']['pass@1']['all'][0]:.1%} -> {run['after']['pass@1']['all'][0]:.1%}; "
        f"sandbox {sum(step['sandbox_seconds'] for step in steps):.0f} of {seconds:.0f} s of GRPO; "
        f"{run['cpu_seconds']:.0f} CPU seconds outside it"
    )


def plot(runs: list[Metrics], path: Path) -> None:
    """The warm-up's loss; reward and entropy by step; held-out pass@1 by step and difficulty; the
    seeds' means before and after."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    warm, reward, entropy, heldout, bars = figure.subplot_mosaic("abc;dee").values()
    difficulties = [which for which in runs[0]["before"]["greedy"] if which != "all"]
    for number, run in enumerate(runs):
        style = {"color": f"C{number + 3}", "label": f"seed {run['seed']}"}
        losses = run["warmup_losses"]
        at = range(0, len(losses), 20)
        warm.semilogy(at, [fmean(losses[i : i + 20]) for i in at], **style)
        for axis, key in ((reward, "reward"), (entropy, "entropy")):
            found = [step[key] for step in run["steps"]]
            axis.plot(range(1, len(found) + 1), found, color=style["color"], alpha=0.25)
            smooth = [fmean(found[max(i - 4, 0) : i + 5]) for i in range(len(found))]
            axis.plot(range(1, len(found) + 1), smooth, **style)
        for colour, which in enumerate(difficulties):
            points = [(0, run["before"]["pass@1"][which][0])] + [
                (step["step"], step[f"heldout/{which}"])
                for step in run["steps"] if "heldout/all" in step
            ]  # fmt: skip
            heldout.plot(
                *zip(*points, strict=True), color=f"C{colour}", marker="o", markersize=3,
                linestyle=("-", "--", ":")[number % 3], label=which if number == 0 else None,
            )  # fmt: skip
    warm.set(xlabel="step of the warm-up", ylabel="loss, nats a token")
    reward.set(xlabel="GRPO step", ylabel="reward on GRPO's charts")
    entropy.set(xlabel="GRPO step", ylabel="entropy, nats a token")
    heldout.set(xlabel="GRPO step", ylabel="held-out pass@1, a line a seed", ylim=(0, 1))
    for axis in (warm, reward, heldout):
        axis.legend(fontsize="small")
    _bars(bars, runs)
    for axis in figure.axes:
        axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def _bars(axis: Any, runs: list[Metrics]) -> None:
    measures = [key for key in runs[0]["before"] if key.startswith("pass@")]
    difficulties = list(runs[0]["before"]["greedy"])
    width = 0.8 / (2 * len(measures))
    for place, key in enumerate(measures):
        for when, alpha in (("before", 0.4), ("after", 1.0)):
            left = (2 * place + (when == "after")) * width - 0.4 + width / 2
            heights = [fmean(run[when][key][d][0] for run in runs) for d in difficulties]
            axis.bar(
                [x + left for x in range(len(difficulties))], heights, width,
                color=f"C{place}", alpha=alpha, label=f"{key}, {when}",
            )  # fmt: skip
    axis.set_xticks(range(len(difficulties)), difficulties)
    axis.set(ylim=(0, 1), ylabel="held out, mean of seeds")
    axis.legend(
        fontsize="x-small", ncols=len(measures), loc="lower center", bbox_to_anchor=(0.5, 1)
    )


def example(run: Metrics, entries: list[Entry], folder: Path) -> str | None:
    """The held-out chart with the longest program among those that are solved after and were not
    before, as chart.png and as Markdown. None: there is none."""
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
    place = max(solved, key=lambda i: len(entries[i]["answer"]))
    flowchart(entries[place]["answer"]).draw(folder / "chart.png", dpi=80)
    parts = {"Before": before["greedy_texts"][place], "After": after["greedy_texts"][place]}
    return "\n".join(f"{when}:\n\n```python\n{text}\n```\n" for when, text in parts.items())
