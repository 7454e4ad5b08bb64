"""From flowcharts to programs: a tiny model, TRL's GRPO, and tests in a sandbox as the reward."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_VOCAB_SIZE = 512  # of the head; the tokenizer finds somewhat fewer
_NOT_THE_RUN = ("seeds", "out", "fresh")  # arguments that leave every number of a seed as it is


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Interrupted? The same command goes on from the last checkpoint.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--seeds", nargs="+", type=int, default=[0], help="of data, weights and draws")
    add("--steps", type=int, default=80, help="of GRPO")
    add("--out", type=Path, default=_HERE / "results", help="results folder")
    add("--fresh", action="store_true", help="delete these seeds' results instead of going on")

    data = parser.add_argument_group("data, each number a multiple of 36")
    data.add_argument("--heldout", type=int, default=180, help="charts never trained on")
    data.add_argument("--rl-charts", type=int, default=1008, help="for GRPO, in no other split")

    model = parser.add_argument_group("model and its supervised warm-up")
    model.add_argument("--hidden-size", type=int, default=96)
    model.add_argument("--layers", type=int, default=2)
    model.add_argument("--warmup-batch-size", type=int, default=32)
    model.add_argument("--warmup-learning-rate", type=float, default=3e-3)
    model.add_argument(
        "--slips-fraction", type=float, default=0.3, help="of its programs have one slip"
    )
    model.add_argument(
        "--target-loss", type=float, default=0.12, help="nats a token; where it starts to cool down"
    )
    model.add_argument("--max-warmup-steps", type=int, default=3000, help="to get there")

    grpo = parser.add_argument_group("GRPO")
    grpo.add_argument("--score", choices=("all", "fraction"), default="all",
        help="of the assertions of a program: 1 if every one holds, or their share")  # fmt: skip
    grpo.add_argument("--prompts-per-step", type=int, default=32)
    grpo.add_argument("--num-generations", type=int, default=8, help="programs per chart")
    grpo.add_argument("--learning-rate", type=float, default=4e-4)
    grpo.add_argument("--max-new-tokens", type=int, default=72)
    grpo.add_argument("--eval-steps", type=int, default=10, help="between held-out pass@1")
    grpo.add_argument("--save-steps", type=int, default=10, help="between checkpoints")
    grpo.add_argument("--samples", type=int, default=8, help="a held-out chart, before and after")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the seeds that are not yet there; returns the metrics of each."""
    args = arguments(argv)
    sys.path[:0] = [str(_HERE.parent / "reasoning_gym"), str(_HERE)]
    import runs

    runs.quiet()
    import figures
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    results = []
    for seed in args.seeds:
        folder = args.out / f"seed{seed}"
        runs.go_on_or_refuse(folder, runs.settings(args, _NOT_THE_RUN), fresh=args.fresh)
        path = folder / "metrics.json"
        if not path.exists():
            runs.write_json(_run(args, seed, folder, console), path)
        results.append(json.loads(path.read_text()))
    figures.plot(results, args.out / "curves.png")
    print(figures.table(results))
    print(f"results: {args.out}")
    for run in results:
        print(figures.last_line(run))
    return results


def _run(args: argparse.Namespace, seed: int, folder: Path, console: Any) -> dict[str, Any]:
    import charts
    import figures
    import grpo
    import judging
    import model as models
    import runs
    from tasks import prompt

    started = time.process_time()
    if not (folder / "splits.json").exists():
        found = charts.splits(seed=seed, heldout=args.heldout, rl=args.rl_charts)
        runs.write_json(asdict(found), folder / "splits.json")
    splits = charts.Splits(**json.loads((folder / "splits.json").read_text()))
    warm = folder / "warmup"
    if not warm.exists():
        _warm_up(args, seed, splits, warm, console)
    how = {"max_new_tokens": args.max_new_tokens, "seed": seed}

    def measured(model: Any, tokenizer: Any) -> dict[str, Any]:
        return judging.measure(
            model, tokenizer, splits.heldout, samples=args.samples, ks=(1, 2, 8), **how
        )

    def heldout(model: Any, tokenizer: Any) -> dict[str, float]:
        return judging.pass_at_1(model, tokenizer, splits.heldout, samples=2, **how)

    if not (folder / "before.json").exists():
        runs.write_json(measured(*models.load(warm)), folder / "before.json")
    reward = judging.TimedReward(judging.program_tests(args.score))
    rows = [{"prompt": prompt(e)} | {c: e[c] for c in judging.COLUMNS} for e in splits.rl]
    told = runs.chosen(grpo.GRPOSettings, vars(args) | {"seed": seed})
    with runs.Bar(console, f"GRPO, {seed}", args.steps) as advance:

        def on_step(step: dict[str, Any]) -> None:
            reward.log(step)
            advance(f"reward {step['reward']:.3f} entropy {step['entropy']:.3f}", step["step"])

        trainer = grpo.train(warm, folder / "grpo", reward, rows, heldout, told, on_step=on_step)
    run = {
        "seed": seed,
        "settings": runs.settings(args, _NOT_THE_RUN),
        "warmup_losses": json.loads((folder / "warmup.json").read_text())["losses"],
        "before": json.loads((folder / "before.json").read_text()),
        "after": measured(trainer.model, trainer.processing_class),
        "cpu_seconds": time.process_time() - started,  # of this process: the sandbox's are others
        "steps": grpo.steps(trainer),
    }
    shown = figures.example(run, splits.heldout, folder)
    (folder / "example.md").write_text(shown or "no chart was solved that was not before\n")
    return run


def _warm_up(args: argparse.Namespace, seed: int, splits: Any, folder: Path, console: Any) -> None:
    """Saves a model that has learnt to read, more or less, and beside the folder its losses."""
    import charts
    import model as models
    import runs
    import warmup
    from tasks import prompt
    from transformers import set_seed

    def entries() -> Iterator[charts.Entry]:
        found = charts.to_learn_from(splits, seed=seed)
        return charts.with_slips(found, args.slips_fraction, seed=seed)

    set_seed(seed)
    texts = (prompt(e) + e["answer"] for e in islice(entries(), 3000))
    tokenizer = models.build_tokenizer(texts, _VOCAB_SIZE, pieces=charts.PIECES)
    model = models.build_model(
        tokenizer,
        hidden_size=args.hidden_size,
        num_layers=args.layers,
        vocab_size=_VOCAB_SIZE,
        convolutions=True,
    )
    settings = warmup.WarmUpSettings(
        batch_size=args.warmup_batch_size,
        learning_rate=args.warmup_learning_rate,
        target_loss=args.target_loss,
        max_steps=args.max_warmup_steps,
    )
    with runs.Bar(console, f"warm-up, {seed}", args.max_warmup_steps) as advance:
        losses = warmup.warm_up(
            model, tokenizer, entries(), settings,
            on_step=lambda loss: advance(f"loss {loss:.3f}"),
        )  # fmt: skip
    runs.write_json({"losses": losses}, folder.with_suffix(".json"))
    models.save(model, tokenizer, folder)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the same command goes on from the last checkpoint")
