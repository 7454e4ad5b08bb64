"""The same held-out start before and after, as strips of frames: frames.png. Needs OpenGL."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HERE = Path(__file__).parent
_CAMERA = {"distance": 1.1, "azimuth": 150.0, "elevation": -35.0, "lookat": [1.3, 0.9, 0.45]}


def main(argv: Sequence[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=_HERE / "results", help="of train.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, help="held-out; the first that was learnt, if none")
    parser.add_argument("--frames", type=int, default=7)
    args = parser.parse_args(argv)
    os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is imported: no display needed
    sys.path.insert(0, str(_HERE))
    import json

    import torch
    import train
    from matplotlib.figure import Figure
    from simulator import Arm

    folder = args.results / f"seed{args.seed}"
    metrics = json.loads((folder / "simplevla" / "metrics.json").read_text())
    start = args.start
    if start is None:
        learnt = set(metrics["after"]["succeeded"]) - set(metrics["before"]["succeeded"])
        start = min(learnt)
    told = argparse.Namespace(**metrics["settings"])
    camera = {**_CAMERA, "lookat": np.array(_CAMERA["lookat"])}
    arm = Arm(render_mode="rgb_array", width=280, height=240, default_camera_config=camera)
    figure = Figure(figsize=(2 * args.frames, 3.9), layout="constrained")
    rows = figure.subplots(2, args.frames)
    saved = ("cold start", "cold_start.pt"), ("after RL", "simplevla/checkpoint.pt")
    for axes, (name, file) in zip(rows, saved, strict=True):
        policy = train._policy(told)
        policy.load_state_dict(torch.load(folder / file, weights_only=True)["policy"])
        seen, success = _episode(arm, policy, start, told.max_steps)
        picked = np.linspace(0, len(seen) - 1, args.frames).round().astype(int)
        for axis, at in zip(axes, picked, strict=True):
            axis.imshow(seen[at])
            axis.set_title(f"step {at}", fontsize="small")
            axis.set_xticks([])
            axis.set_yticks([])
        axes[0].set_ylabel(f"{name}: {'success' if success else 'failure'}")
    path: Path = args.results / "frames.png"
    figure.savefig(path, dpi=90)
    print(f"start {start}: {path}")
    return path


def _episode(
    arm: Any, policy: Any, start: int, max_steps: int
) -> tuple[list[NDArray[np.uint8]], bool]:
    """Greedy, with a frame for every step."""
    import torch
    from simulator import ACTION_DIM

    state = arm.reset(0, start)
    frames = [arm.frame(0)]
    while len(frames) <= max_steps:
        sample = policy.act(torch.from_numpy(state)[None], seed=0, step=0, greedy=True)
        for action in sample.actions.view(-1, ACTION_DIM).numpy():
            state, _, success = arm.act(0, action[None])
            frames.append(arm.frame(0))
            if success:
                return frames, True
    return frames, False


if __name__ == "__main__":
    main()
