"""SimpleVLA-RL on a laptop: a tiny VLA learns to push a block, from success or failure alone."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
# What a variant changes of the settings that the command line gives.
VARIANTS: dict[str, dict[str, Any]] = {
    "simplevla": {},
    "no-dynamic-sampling": {"dynamic_sampling": False},
    "no-clip-higher": {"clip_high": 0.2},
    "temperature-1": {"temperature": 1.0},
    "none-of-the-three": {"dynamic_sampling": False, "clip_high": 0.2, "temperature": 1.0},
}
_NOT_THE_RUN = ("variant", "seeds", "out", "fresh", "processes", "threads")
# Starts by use: a seed of the simulator each, none in two of them.
_HELD_OUT, _DEMONSTRATED, _TRAINED = 0, 1_000_000, 2_000_000


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Interrupted? The same command goes on from the last checkpoint; finished runs are "
        "read.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--variant", nargs="+", choices=tuple(VARIANTS), default=["simplevla"],
        help="the paper's exploration: all of it, or without a part")  # fmt: skip
    add("--seeds", nargs="+", type=int, default=[0], help="of weights, demonstrations and draws")
    add("--iterations", type=int, default=60, help="rollouts, each with several updates")
    add("--out", type=Path, default=_HERE / "results", help="results folder")
    add("--fresh", action="store_true", help="delete what --out holds instead of going on with it")
    add("--processes", type=int, default=2, help="of simulators; 0: none but this one")
    add("--threads", type=int, default=2, help="of the policy")

    model = parser.add_argument_group("policy and its cold start")
    model.add_argument("--hidden-size", type=int, default=64)
    model.add_argument("--layers", type=int, default=2)
    model.add_argument("--chunk-size", type=int, default=3, help="actions of a forward")
    model.add_argument("--demonstrations", type=int, default=3, help="of the scripted expert")
    model.add_argument("--noise", type=float, default=0.1, help="of the expert's actions")
    model.add_argument("--imitation-steps", type=int, default=400)
    model.add_argument("--imitation-batch-size", type=int, default=64)
    model.add_argument("--imitation-learning-rate", type=float, default=1e-3)

    rl = parser.add_argument_group("reinforcement learning")
    rl.add_argument("--max-steps", type=int, default=15, help="actions of an episode; 80 ms each")
    rl.add_argument("--groups", type=int, default=32, help="of a round, each from one start")
    rl.add_argument("--group-size", type=int, default=8, help="episodes from one start")
    rl.add_argument("--max-rounds", type=int, default=4, help="of an iteration")
    rl.add_argument("--temperature", type=float, default=1.6, help="of rollouts and losses")
    rl.add_argument("--clip-low", type=float, default=0.2)
    rl.add_argument("--clip-high", type=float, default=0.28)
    rl.add_argument("--mini-batches", type=int, default=8, help="of an iteration; an update each")
    rl.add_argument("--epochs", type=int, default=2, help="over an iteration's episodes")
    rl.add_argument("--learning-rate", type=float, default=1e-3)
    rl.add_argument("--warmup-updates", type=int, default=16, help="of the learning rate")
    rl.add_argument("--heldout", type=int, default=256, help="starts of an evaluation, greedy")
    rl.add_argument("--eval-every", type=int, default=10, help="iterations; checkpoints too")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Runs what is not yet there; returns the metrics of every seed by variant."""
    args = arguments(argv)
    if args.max_steps % args.chunk_size:
        sys.exit(f"--max-steps: expected a multiple of --chunk-size, got {args.max_steps}")
    sys.path[:0] = [str(_HERE), str(_HERE.parent / "reasoning_gym")]
    import runs
    import summary
    import torch
    from simulator import Pool

    runs.go_on_or_refuse(args.out, runs.settings(args, _NOT_THE_RUN), fresh=args.fresh)
    torch.set_num_threads(args.threads)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in args.variant}
    with Pool(args.processes) as pool:
        for seed in args.seeds:
            for variant in args.variant:
                path = args.out / f"seed{seed}" / variant / "metrics.json"
                if not path.exists():
                    _run(args, pool, seed, variant, path)
                results[variant].append(json.loads(path.read_text()))
    summary.plot(results, args.out / "curves.png")
    print(summary.table(results))
    print(f"results: {args.out}")
    return results


def _run(args: argparse.Namespace, pool: Any, seed: int, variant: str, path: Path) -> None:
    import grpo
    import runs
    import torch

    known = vars(args) | {"seed": seed, "dynamic_sampling": True} | VARIANTS[variant]
    told = runs.chosen(grpo.GRPOSettings, known)
    policy = _policy(args)
    before = _cold_start(args, pool, policy, seed)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=told.learning_rate, weight_decay=0.01)
    log: list[dict[str, float]] = []
    sampled = 0
    checkpoint = path.with_name("checkpoint.pt")
    path.parent.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        policy.load_state_dict(saved["policy"])
        optimizer.load_state_dict(saved["optimizer"])
        log, sampled = saved["log"], saved["sampled"]
    with runs.Bar(None, f"seed {seed} {variant}", args.iterations) as advance:
        advance("", completed=len(log))
        for iteration in range(len(log), args.iterations):
            wall, cpu = time.perf_counter(), _cpu_seconds(pool)
            batch = grpo.collect(
                policy,
                pool,
                told,
                first_start=_TRAINED + sampled // told.group_size,
                sampled_before=sampled,
            )
            sampled += batch.sampled
            found = grpo.update(policy, optimizer, batch.episodes, told, iteration=iteration)
            step = {
                "iteration": iteration + 1,
                "episodes": sampled,
                "success": batch.success,
                "kept_groups": batch.kept,
                **found,
                "seconds": time.perf_counter() - wall,
                "cpu_seconds": _cpu_seconds(pool) - cpu,
            }
            last = iteration + 1 == args.iterations
            if last or (iteration + 1) % args.eval_every == 0:
                step["heldout_success"] = _heldout(args, pool, policy)["success"]
            log.append(step)
            if "heldout_success" in step:
                saved = {"policy": policy.state_dict(), "optimizer": optimizer.state_dict()}
                runs.save(saved | {"log": log, "sampled": sampled}, checkpoint)
            advance(_text(log, before["success"]))
    metrics = {
        "variant": variant,
        "seed": seed,
        "settings": runs.settings(args, _NOT_THE_RUN) | VARIANTS[variant],
        "heldout": args.heldout,
        "before": before,
        "after": _heldout(args, pool, policy),
        "episodes": sampled,
        "seconds": sum(step["seconds"] for step in log),
        "cpu_seconds": sum(step["cpu_seconds"] for step in log),
        "steps": log,
    }
    runs.write_json(metrics, path)


def _policy(args: argparse.Namespace) -> Any:
    from policy import Policy

    return Policy(hidden_size=args.hidden_size, num_layers=args.layers, chunk_size=args.chunk_size)


def _cold_start(args: argparse.Namespace, pool: Any, policy: Any, seed: int) -> dict[str, Any]:
    """Puts into `policy` what all variants of a seed start from; returns its evaluation."""
    import runs
    import torch
    from expert import demonstrate
    from imitation import imitate
    from simulator import Arm

    path = args.out / f"seed{seed}" / "cold_start.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        policy.load_state_dict(saved["policy"])
        return dict(saved["before"])
    wall, cpu = time.perf_counter(), _cpu_seconds(pool)
    shown = demonstrate(
        Arm(),
        args.demonstrations,
        first_start=_DEMONSTRATED + 1000 * seed,
        max_steps=args.max_steps,
        chunk_size=args.chunk_size,
        noise=args.noise,
        seed=seed,
    )
    torch.manual_seed(seed)
    policy.load_state_dict(_policy(args).state_dict())  # drawn by this seed, whatever was before
    with runs.Bar(None, f"seed {seed} imitation", args.imitation_steps) as advance:
        imitate(
            policy,
            shown,
            steps=args.imitation_steps,
            batch_size=args.imitation_batch_size,
            learning_rate=args.imitation_learning_rate,
            seed=seed,
            on_step=lambda loss: advance(f"loss {loss:.2f}"),
        )
    times = {"seconds": time.perf_counter() - wall, "cpu_seconds": _cpu_seconds(pool) - cpu}
    before = _heldout(args, pool, policy) | times | {"demonstrated_steps": len(shown.states)}
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.save({"policy": policy.state_dict(), "before": before}, path)
    return before


def _heldout(args: argparse.Namespace, pool: Any, policy: Any) -> dict[str, Any]:
    """Greedy episodes from the held-out starts: what fraction succeeds, and in which."""
    import grpo

    starts = range(_HELD_OUT, _HELD_OUT + args.heldout)
    episodes = grpo.roll_out(policy, pool, starts, max_steps=args.max_steps, greedy=True)
    return {
        "success": episodes.success.float().mean().item(),
        "succeeded": episodes.success.nonzero().flatten().tolist(),
    }


def _cpu_seconds(pool: Any) -> float:
    """Of this process and the simulators'."""
    return time.process_time() + float(pool.cpu_seconds())


def _text(log: list[dict[str, float]], before: float) -> str:
    heldout = [step["heldout_success"] for step in log if "heldout_success" in step]
    return (
        f"{log[-1]['episodes']} episodes, {log[-1]['success']:.0%} succeed; "
        f"held-out {before:.0%} → {heldout[-1] if heldout else before:.0%}"
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the same command goes on from the last checkpoint")
