"""TTRL: learns from unlabeled test questions, by the vote of its own answers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_NOT_THE_RUN = ("reward", "seeds", "out", "fresh")  # leave every number of one run as it is


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Interrupted? The same command goes on from the last checkpoint.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--reward", nargs="+", choices=("majority", "labels"), default=["majority", "labels"],
        help="a run for each: TTRL's, and the supervised one for comparison")  # fmt: skip
    add("--task", choices=("spell_backward", "chain_sum"), default="spell_backward",
        help="of reasoning-gym")  # fmt: skip
    add("--seeds", nargs="+", type=int, default=[0], help="of data, weights and draws")
    add("--steps", type=int, default=100, help="of GRPO")
    add("--out", type=Path, default=_HERE / "results", help="results folder")
    add("--fresh", action="store_true", help="delete what --out holds instead of going on with it")

    data = parser.add_argument_group("data")
    data.add_argument("--test", type=int, default=300, help="questions trained on without labels")
    data.add_argument("--heldout", type=int, default=300, help="questions never trained on")
    data.add_argument("--warmup-questions", type=int, default=4000, help="with answers")

    model = parser.add_argument_group("model and its supervised warm-up")
    model.add_argument("--hidden-size", type=int, default=96)
    model.add_argument("--layers", type=int, default=2)
    model.add_argument("--vocab-size", type=int, default=128, help="of the head")
    model.add_argument("--warmup-steps", type=int, default=500)
    model.add_argument("--warmup-batch-size", type=int, default=96)
    model.add_argument("--warmup-learning-rate", type=float, default=3e-3)
    model.add_argument("--flawed-fraction", type=float, default=0.4,
        help='of its answers: a wrong letter; of chain_sum a hedge, "12 or 15"')  # fmt: skip

    rl = parser.add_argument_group("TTRL")
    rl.add_argument("--votes", type=int, default=16, help="completions per prompt")
    rl.add_argument("--samples", type=int, default=8, help="of them that are trained on")
    rl.add_argument("--min-agreement", type=float, default=0.0,
        help="share of the votes that a majority needs to be learned from")  # fmt: skip
    rl.add_argument("--prompts-per-step", type=int, default=32)
    rl.add_argument("--hedges", choices=("abstain", "vote"), default="abstain",
        help='of chain_sum: what "12 or 15" does in a vote: nothing, or count as 15')  # fmt: skip
    rl.add_argument("--learning-rate", type=float, default=3e-4)
    rl.add_argument("--max-new-tokens", type=int, default=8)
    rl.add_argument("--eval-steps", type=int, default=10, help="between greedy accuracies")
    rl.add_argument("--save-steps", type=int, default=20, help="between checkpoints")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Runs what is not yet there; returns the metrics of every seed by reward."""
    args = arguments(argv)
    sys.path[:0] = [str(_HERE.parent / "reasoning_gym"), str(_HERE)]
    import runs

    runs.go_on_or_refuse(args.out, runs.settings(args, _NOT_THE_RUN), fresh=args.fresh)
    runs.quiet()
    import curves
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in args.reward}
    for seed in args.seeds:
        for name in args.reward:
            path = args.out / f"seed{seed}" / name / "metrics.json"
            if not path.exists():
                runs.write_json(_run(args, seed, name, path.parent, console), path)
            results[name].append(json.loads(path.read_text()))
    curves.plot(results, args.out / "curves.png")
    console.print(curves.table(results))
    console.print(f"results: {args.out}")
    return results


def _run(
    args: argparse.Namespace, seed: int, name: str, folder: Path, console: Any
) -> dict[str, Any]:
    """One training from the seed's warm model, measured before and after."""
    import grpo
    import measuring
    import runs
    import voting
    from tasks import Task

    task = Task(
        args.task,
        seed=seed,
        heldout=args.heldout,
        warmup=args.warmup_questions,
        rl=args.test,
    )
    sets = {"test": task.splits.rl, "heldout": task.splits.heldout}
    how = {
        "extract": measuring.KINDS[args.task].extracts[args.hedges],
        "max_new_tokens": args.max_new_tokens,
    }

    def greedy(model: Any, tokenizer: Any) -> dict[str, float]:
        return {
            f"{which}_greedy": measuring.greedy(model, tokenizer, entries, **how)
            for which, entries in sets.items()
        }

    def measured(model: Any, tokenizer: Any) -> dict[str, float]:
        found = greedy(model, tokenizer)
        for which, entries in sets.items():
            many = measuring.sampled(
                model, tokenizer, entries,
                votes=args.votes, seed=seed, **how,
            )  # fmt: skip
            found |= {f"{which}_{key}": value for key, value in many.items()}
        return found

    before = _warm(args, seed, folder.parent, task, measured, console)
    known = vars(args) | {"seed": seed, "num_generations": args.votes}
    settings = runs.chosen(grpo.GRPOSettings, known)
    reward = voting.REWARDS[name](
        num_votes=args.votes,
        num_samples=args.samples,
        group_size=args.votes,
        extract=how["extract"],
    )
    with runs.Bar(console, f"seed {seed} {name}", args.steps) as advance:
        model, tokenizer, log = voting.train(
            folder.parent / "warmup",
            folder,
            task.splits.rl,
            reward,
            settings,
            num_samples=args.samples,
            min_agreement=args.min_agreement if name == "majority" else 0.0,
            evaluate=greedy,
            on_step=lambda step: advance(
                f"pass@1 {step['accuracy']:.0%} maj@{args.votes} {step['label_accuracy']:.0%}",
                step["step"],
            ),
        )
    return {
        "reward": name,
        "seed": seed,
        "settings": runs.settings(args, _NOT_THE_RUN),
        "before": before,
        "after": measured(model, tokenizer),
        "cpu_seconds": sum(step["cpu_seconds"] for step in log),
        "steps": log,
    }


def _warm(
    args: argparse.Namespace, seed: int, folder: Path, task: Any, measured: Any, console: Any
) -> dict[str, float]:
    """Makes the model that all runs of a seed start from; returns what it can."""
    import measuring
    import model as models
    import runs

    kind = measuring.KINDS[args.task]
    path = folder / "before.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "warmup").exists():
            with runs.Bar(console, f"seed {seed} warm-up", args.warmup_steps) as advance:
                models.make_warm(
                    folder / "warmup",
                    kind.flawed(task.splits.warmup, args.flawed_fraction, seed=seed),
                    seed=seed,
                    hidden_size=args.hidden_size,
                    num_layers=args.layers,
                    vocab_size=args.vocab_size,
                    pieces=kind.pieces,
                    steps=args.warmup_steps,
                    batch_size=args.warmup_batch_size,
                    learning_rate=args.warmup_learning_rate,
                    on_step=lambda loss: advance(f"loss {loss:.3f}"),
                )
        runs.write_json(measured(*models.load(folder / "warmup")), path)
    return dict(json.loads(path.read_text()))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the same command goes on from the last checkpoint")
