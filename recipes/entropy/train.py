"""GRPO, Clip-Cov, KL-Cov and FlowRL from the same warm-up on the same seeds, side by side."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
# Leave every number of one run as it is; FlowRL's run has its reward scale in its name.
_NOT_THE_RUN = ("method", "seeds", "out", "fresh", "reward_scale")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Finished runs are read, not repeated.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--method", nargs="+", choices=("grpo", "clip-cov", "kl-cov", "flowrl"),
        default=["grpo", "clip-cov", "kl-cov", "flowrl"], help="in this order")  # fmt: skip
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of data, weights and draws")
    add("--task", choices=("countdown", "chain_sum"), default="countdown")
    add("--steps", type=int, default=60, help="generations; each has several updates")
    add("--out", type=Path, help="results folder (default: results/TASK beside this file)")
    add("--fresh", action="store_true", help="delete what --out holds instead of going on with it")

    data = parser.add_argument_group("data")
    data.add_argument("--heldout", type=int, default=100, help="questions never trained on")
    data.add_argument("--warmup-questions", type=int, default=800, help="with solutions")
    data.add_argument("--solutions", type=int, default=8, help="of each, at the most (countdown)")
    data.add_argument("--rl-questions", type=int, default=500, help="in no other split")

    model = parser.add_argument_group("model and its supervised warm-up")
    model.add_argument("--hidden-size", type=int, default=96)
    model.add_argument("--layers", type=int, default=2)
    model.add_argument("--vocab-size", type=int, default=512, help="of the head")
    model.add_argument("--warmup-steps", type=int, default=1500)
    model.add_argument("--warmup-batch-size", type=int, default=96)
    model.add_argument("--warmup-learning-rate", type=float, default=3e-3)
    model.add_argument("--hedged-fraction", type=float, default=0.6, help="(chain_sum)")

    shared = parser.add_argument_group("what the methods share")
    shared.add_argument("--prompts-per-step", type=int, default=32)
    shared.add_argument("--num-generations", type=int, default=8, help="completions per prompt")
    shared.add_argument("--mini-batches", type=int, default=2, help="updates an iteration")
    shared.add_argument("--iterations", type=int, default=2, help="over each generation")
    shared.add_argument("--learning-rate", type=float, default=2e-4)
    shared.add_argument("--max-new-tokens", type=int, default=16)
    shared.add_argument("--samples", type=int, default=32, help="a held-out question, at the end")

    own = parser.add_argument_group("what is their own; README.md: why not the authors'")
    own.add_argument("--clip-cov-fraction", type=float, default=0.01)
    own.add_argument("--clip-cov-lower", type=float, default=1.0)
    own.add_argument("--clip-cov-upper", type=float, default=5.0)
    own.add_argument("--kl-cov-fraction", type=float, default=0.02)
    own.add_argument("--kl-cov-coef", type=float, default=1.0)
    own.add_argument("--reward-scale", type=float, nargs="+", default=[15.0],
        help="FlowRL's beta; a run for each")  # fmt: skip
    args = parser.parse_args(argv)
    args.out = args.out or _HERE / "results" / args.task
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Runs what is not yet there; returns the metrics of every seed by method."""
    args = arguments(argv)
    sys.path[:0] = [str(_HERE.parent / "reasoning_gym"), str(_HERE)]
    import runs

    runs.quiet()
    import side_by_side
    from tasks import Task

    runs.go_on_or_refuse(args.out, runs.settings(args, _NOT_THE_RUN), fresh=args.fresh)
    asked = _runs(args)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in asked}
    for seed in args.seeds:
        task = None
        for name, (method, reward_scale) in asked.items():
            path = args.out / f"seed{seed}" / name / "metrics.json"
            if not path.exists():
                if task is None:
                    sizes = args.heldout, args.warmup_questions, args.rl_questions
                    names = "heldout", "warmup", "rl"
                    task = Task(args.task, seed=seed, **dict(zip(names, sizes, strict=True)))
                _run(args, task, seed, method, reward_scale, path)
            results[name].append(json.loads(path.read_text()))
    side_by_side.plot(results, args.out / "curves.png", args.task)
    print(side_by_side.table(results))
    print(f"results: {args.out}")
    return results


def _runs(args: argparse.Namespace) -> dict[str, tuple[str, float]]:
    """(method, reward scale) of what is asked for, by name: "grpo", "flowrl-15"."""
    runs: dict[str, tuple[str, float]] = {}
    for method in args.method:
        if method == "flowrl":
            runs |= {f"flowrl-{scale:g}": (method, scale) for scale in args.reward_scale}
        else:
            runs[method] = method, 0.0
    return runs


def _run(
    args: argparse.Namespace, task: Any, seed: int, method: str, reward_scale: float, path: Path
) -> None:
    import grpo
    import methods
    import model as models
    import runs
    from sampling import sampled

    warm = _warm_up(args, task, seed)
    own = {"seed": seed, "reward_scale": reward_scale, "eval_steps": 0, "save_steps": 0}
    known = vars(args) | own
    model, tokenizer, log = methods.train(
        method,
        warm,
        path.parent,
        task,
        runs.chosen(grpo.GRPOSettings, known),
        runs.chosen(methods.MethodSettings, known),
        on_step=lambda step: _say(seed, path.parent.name, step, args),
    )
    entries, length = task.splits.heldout, args.max_new_tokens

    def measured(model: Any, tokenizer: Any) -> dict[str, float]:
        greedy = models.greedy_accuracy(model, tokenizer, task, entries, max_new_tokens=length)
        many = sampled(
            model, tokenizer, task, entries,
            samples=args.samples, max_new_tokens=length, seed=seed,
        )  # fmt: skip
        return {"accuracy": greedy} | many

    first = path.parents[1] / "before.json"
    if not first.exists():
        runs.write_json(measured(*models.load(warm)), first)
    before = json.loads(first.read_text())
    metrics = {
        "method": method,
        "seed": seed,
        "reward_scale": reward_scale,
        "settings": runs.settings(args, _NOT_THE_RUN),
        "before": before,
        "after": measured(model, tokenizer),
        "seconds": sum(step["step_time"] for step in log),
        "steps": log,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(metrics, path)


def _warm_up(args: argparse.Namespace, task: Any, seed: int) -> Path:
    """The folder of the model that all methods of a seed start from."""
    import model as models
    from countdown import with_solutions
    from tasks import prompt, with_hedges
    from transformers import set_seed

    folder: Path = args.out / f"seed{seed}" / "warmup"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    set_seed(seed)
    entries = (
        with_solutions(task.splits.warmup, args.solutions, seed=seed)
        if args.task == "countdown"
        else with_hedges(task.splits.warmup, args.hedged_fraction, seed=seed)
    )
    tokenizer = models.build_tokenizer((prompt(e) + e["answer"] for e in entries), args.vocab_size)
    model = models.build_model(
        tokenizer,
        hidden_size=args.hidden_size,
        num_layers=args.layers,
        vocab_size=args.vocab_size,
    )
    models.warm_up(
        model,
        tokenizer,
        entries,
        steps=args.warmup_steps,
        batch_size=args.warmup_batch_size,
        learning_rate=args.warmup_learning_rate,
    )
    models.save(model, tokenizer, folder)
    return folder


def _say(seed: int, name: str, step: dict[str, Any], args: argparse.Namespace) -> None:
    at = step["step"] // (args.mini_batches * args.iterations)
    if at % 10 == 0 or at == args.steps:
        shown = f"reward {step['reward']:.3f} entropy {step['entropy']:.3f}"
        print(f"seed {seed} {name:<9} {at:>4}/{args.steps} {shown}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the same command repeats the run at hand and keeps those before")
