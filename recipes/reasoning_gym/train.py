"""RL with verifiable rewards on a laptop: reasoning-gym, a tiny model, TRL's GRPO, logpi's head."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_NOT_THE_RUN = ("log_probs", "out", "fresh")  # arguments that leave every number as it is


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Interrupted? The same command goes on from the last checkpoint.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--log-probs", choices=("logpi", "torch", "both"), default="logpi",
        help="who computes log-probs and entropies; torch: TRL's own path; both: one after the "
        "other from the same warm-up, then side by side")  # fmt: skip
    add("--backend", default="auto", help="logpi's backend")
    add("--seed", type=int, default=0, help="of data, weights and draws")
    add("--steps", type=int, default=100, help="of GRPO")
    add(
        "--out",
        type=Path,
        help="results folder (default: results/chain_sum-seedSEED beside this file)",
    )
    add("--fresh", action="store_true", help="delete what --out holds instead of going on with it")

    data = parser.add_argument_group("data")
    data.add_argument("--heldout", type=int, default=500, help="questions never trained on")
    data.add_argument("--warmup-questions", type=int, default=1500, help="with answers")
    data.add_argument("--rl-questions", type=int, default=1900, help="for GRPO, in no other split")

    model = parser.add_argument_group("model")
    model.add_argument("--hidden-size", type=int, default=96)
    model.add_argument("--layers", type=int, default=2)
    model.add_argument("--vocab-size", type=int, default=4096, help="of the head; README.md: why")

    warmup = parser.add_argument_group("supervised warm-up")
    warmup.add_argument("--warmup-steps", type=int, default=500)
    warmup.add_argument("--warmup-batch-size", type=int, default=96)
    warmup.add_argument(
        "--hedged-fraction", type=float, default=0.6, help='of its answers: "12 or 15", not "12"'
    )
    warmup.add_argument("--warmup-learning-rate", type=float, default=3e-3)

    grpo = parser.add_argument_group("GRPO")
    grpo.add_argument("--prompts-per-step", type=int, default=32)
    grpo.add_argument("--num-generations", type=int, default=8, help="completions per prompt")
    grpo.add_argument("--learning-rate", type=float, default=1e-4)
    grpo.add_argument("--max-new-tokens", type=int, default=8)
    grpo.add_argument("--eval-steps", type=int, default=20, help="between held-out accuracies")
    grpo.add_argument("--save-steps", type=int, default=20, help="between checkpoints")
    args = parser.parse_args(argv)
    args.out = args.out or _HERE / "results" / f"chain_sum-seed{args.seed}"
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs what the command line asks for; returns the metrics by implementation."""
    args = arguments(argv)
    import runs

    runs.go_on_or_refuse(args.out, runs.settings(args, _NOT_THE_RUN), fresh=args.fresh)
    runs.quiet()
    import summary
    from rich.console import Console
    from tasks import Task

    console = Console(soft_wrap=True, highlight=False)
    task = Task(
        "chain_sum",
        seed=args.seed,
        heldout=args.heldout,
        warmup=args.warmup_questions,
        rl=args.rl_questions,
    )
    _warm_up(args, task, console)
    results = {}
    for log_probs in ("torch", "logpi") if args.log_probs == "both" else (args.log_probs,):
        folder = args.out / log_probs
        results[log_probs] = summary.read(folder) or _grpo(args, task, log_probs, console)
    if len(results) == 2:
        console.print(summary.compare(results["logpi"], results["torch"]))
    console.print(f"results: {args.out}")
    for metrics in results.values():
        console.print(summary.last_line(metrics))
    return results


def _warm_up(args: argparse.Namespace, task: Any, console: Any) -> None:
    import model as models
    from runs import Bar
    from tasks import with_hedges

    folder = args.out / "warmup"
    if folder.exists():
        return
    entries = with_hedges(task.splits.warmup, args.hedged_fraction, seed=args.seed)
    with Bar(console, "warm-up", args.warmup_steps) as advance:
        models.make_warm(
            folder,
            entries,
            seed=args.seed,
            hidden_size=args.hidden_size,
            num_layers=args.layers,
            vocab_size=args.vocab_size,
            steps=args.warmup_steps,
            batch_size=args.warmup_batch_size,
            learning_rate=args.warmup_learning_rate,
            on_step=lambda loss: advance(f"loss {loss:.3f}"),
        )


def _grpo(args: argparse.Namespace, task: Any, log_probs: str, console: Any) -> dict[str, Any]:
    import grpo
    import model as models
    import runs
    import summary

    warm, folder = args.out / "warmup", args.out / log_probs
    before = models.greedy_accuracy(
        *models.load(warm), task, task.splits.heldout, max_new_tokens=args.max_new_tokens
    )
    settings = runs.chosen(grpo.GRPOSettings, vars(args))
    with runs.Bar(console, f"GRPO, {log_probs}", args.steps) as advance:
        log = grpo.run_grpo(
            warm,
            folder,
            task,
            settings,
            log_probs=log_probs,
            backend=args.backend,
            on_step=lambda step: advance(
                f"reward {step['reward']:.3f} entropy {step['entropy']:.3f}", step["step"]
            ),
        )
    metrics = summary.summarize(
        log, settings=runs.settings(args, _NOT_THE_RUN), log_probs=log_probs, warmup_accuracy=before
    )
    summary.write(metrics, folder)
    return metrics


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the same command goes on from the last checkpoint")
