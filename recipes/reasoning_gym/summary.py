"""What a run leaves behind: metrics.json, curves.png, and the lines printed at the end."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from runs import write_json

Metrics = dict[str, Any]
_CURVES = ("reward", "entropy", "loss")  # compared step by step between two runs


def summarize(
    log: list[dict[str, Any]],
    *,
    settings: dict[str, Any],
    log_probs: str,
    warmup_accuracy: float,
) -> Metrics:
    """Everything about one GRPO run that is worth keeping, ready for JSON."""
    forward = sum(step["loss_head_forward_seconds"] for step in log)
    backward = sum(step["loss_head_backward_seconds"] for step in log)
    packages = ("logpi", "torch", "trl", "transformers", "reasoning-gym")
    return {
        "log_probs": log_probs,
        "settings": settings,
        "accuracy_before": warmup_accuracy,
        "accuracy_after": log[-1]["heldout_accuracy"],
        "loss_head_seconds": forward + backward,
        "loss_head_forward_seconds": forward,
        "loss_head_backward_seconds": backward,
        "grpo_seconds": sum(step["step_time"] for step in log),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "machine": {
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
            "LOGPI_BACKEND": os.environ.get("LOGPI_BACKEND"),
        },
        "steps": log,
    }


def write(metrics: Metrics, folder: Path) -> None:
    """metrics.json and curves.png; the JSON last, for its presence says that the run is whole."""
    plot(metrics, folder / "curves.png")
    write_json(metrics, folder / "metrics.json")


def read(folder: Path) -> Metrics | None:
    """The metrics of a whole run, or None."""
    path = folder / "metrics.json"
    return json.loads(path.read_text()) if path.exists() else None


def plot(metrics: Metrics, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    steps = metrics["steps"]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    for axis, key in zip(axes, ("reward", "entropy"), strict=False):
        axis.plot([step["step"] for step in steps], [step[key] for step in steps])
        axis.set_ylabel({"reward": "mean reward", "entropy": "entropy (nats per token)"}[key])
    measured = [(0, metrics["accuracy_before"])] + [
        (step["step"], step["heldout_accuracy"]) for step in steps if "heldout_accuracy" in step
    ]
    axes[2].plot(*zip(*measured, strict=True), marker="o")
    axes[2].set_ylabel("held-out accuracy (greedy)")
    for axis in axes:
        axis.set_xlabel("GRPO step")
        axis.grid(alpha=0.3)
    figure.suptitle(
        f"chain_sum, seed {metrics['settings']['seed']}, log-probs by {metrics['log_probs']}"
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def last_line(metrics: Metrics) -> str:
    return (
        f"{metrics['log_probs']}: held-out accuracy {metrics['accuracy_before']:.1%} -> "
        f"{metrics['accuracy_after']:.1%}; {metrics['loss_head_seconds']:.1f} s in the loss head "
        f"of {metrics['grpo_seconds']:.1f} s of GRPO"
    )


def compare(ours: Metrics, theirs: Metrics) -> str:
    """Loss-head seconds side by side, and how far the curves are apart."""
    lines = [f"{'seconds in the loss head':<26}{'logpi':>9}{'torch':>9}{'ratio':>9}"]
    for label in ("forward", "backward", ""):
        key = f"loss_head_{label}_seconds" if label else "loss_head_seconds"
        a, b = ours[key], theirs[key]
        lines.append(f"  {label or 'both':<24}{a:>9.2f}{b:>9.2f}{b / a:>8.1f}x")
    lines.append("curves, the largest difference of any step, and the first step that differs")
    for key, (largest, first) in curve_differences(ours, theirs).items():
        place = "none above 1e-4" if first is None else f"step {first} (above 1e-4)"
        lines.append(f"  {key:<24}{largest:>9.2g}   {place}")
    return "\n".join(lines)


def curve_differences(a: Metrics, b: Metrics) -> dict[str, tuple[float, int | None]]:
    """(largest difference of any step, first step with one above 1e-4) of every curve."""
    result = {}
    for key in _CURVES:
        apart = [
            (x["step"], abs(x[key] - y[key])) for x, y in zip(a["steps"], b["steps"], strict=True)
        ]
        first = next((step for step, difference in apart if difference > 1e-4), None)
        result[key] = max(difference for _, difference in apart), first
    return result
