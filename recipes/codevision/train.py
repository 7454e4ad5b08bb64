"""From flowcharts to programs: a tiny model, TRL's GRPO, and tests in a sandbox as the reward."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_NOT_THE_RUN = ("seeds", "out", "fresh")  # arguments that leave every number of a seed as it is


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Interrupted? The same command goes on from the last checkpoint.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--seeds", nargs="+", type=int, default=[0], help="of data, weights and draws")
    add("--steps", type=int, default=30, help="of GRPO")
    add("--out", type=Path, default=_HERE / "results", help="results folder")
    add("--fresh", action="store_true", help="delete these seeds' results instead of going on")

    data = parser.add_argument_group("data, each number a multiple of 36")
    data.add_argument("--difficulties", nargs="+", default=["easy"], help="easy, medium, hard")
    data.add_argument("--heldout", type=int, default=108, help="charts never trained on")
    data.add_argument("--rl-charts", type=int, default=144, help="for GRPO, in no other split")

    model = parser.add_argument_group("model and its supervised warm-up")
    model.add_argument("--hidden-size", type=int, default=96)
    model.add_argument("--layers", type=int, default=2)
    model.add_argument("--vocab-size", type=int, default=512)
    model.add_argument("--warmup-steps", type=int, default=450)
    model.add_argument("--warmup-batch-size", type=int, default=32)
    model.add_argument("--warmup-learning-rate", type=float, default=3e-3)
    model.add_argument(
        "--flawed-fraction", type=float, default=0.0, help="of its programs have one slip"
    )

    grpo = parser.add_argument_group("GRPO")
    grpo.add_argument("--prompts-per-step", type=int, default=12)
    grpo.add_argument("--num-generations", type=int, default=8, help="programs per chart")
    grpo.add_argument("--learning-rate", type=float, default=2e-4)
    grpo.add_argument("--max-new-tokens", type=int, default=72)
    grpo.add_argument("--eval-steps", type=int, default=10, help="between held-out passes")
    grpo.add_argument("--save-steps", type=int, default=10, help="between checkpoints")
    grpo.add_argument("--samples", type=int, default=8, help="a held-out chart, before and after")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the seeds that are not yet there; returns the metrics of each."""
    args = arguments(argv)
    sys.path[:0] = [str(_HERE.parent / "reasoning_gym"), str(_HERE)]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported, below
    import figures
    import transformers
    from rich.console import Console
    from runs import go_on_or_refuse

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    console = Console(soft_wrap=True, highlight=False)
    runs = []
    for seed in args.seeds:
        folder = args.out / f"seed{seed}"
        go_on_or_refuse(folder, _settings(args), fresh=args.fresh)
        path = folder / "metrics.json"
        if not path.exists():
            _write(_run(args, seed, folder, console), path)
        runs.append(json.loads(path.read_text()))
    figures.plot(runs, args.out / "curves.png")
    print(figures.table(runs))
    print(f"results: {args.out}")
    for run in runs:
        print(figures.last_line(run))
    return runs


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(args).items() if key not in _NOT_THE_RUN}


def _run(args: argparse.Namespace, seed: int, folder: Path, console: Any) -> dict[str, Any]:
    import charts
    import figures
    import grpo
    import judging
    import model as models
    from runs import Bar
    from tasks import prompt

    started = time.process_time()
    if not (folder / "splits.json").exists():
        found = charts.splits(
            seed=seed, heldout=args.heldout, rl=args.rl_charts, difficulties=args.difficulties
        )
        _write(asdict(found), folder / "splits.json")
    splits = charts.Splits(**json.loads((folder / "splits.json").read_text()))
    warm = _warm_up(args, seed, splits, folder / "warmup", console)
    length = args.max_new_tokens

    def measured(model: Any, tokenizer: Any) -> dict[str, Any]:
        return judging.measure(
            model, tokenizer, splits.heldout,
            samples=args.samples, ks=(1, 8), max_new_tokens=length, seed=seed,
        )  # fmt: skip

    def heldout(model: Any, tokenizer: Any) -> dict[str, float]:
        texts = judging.greedy(model, tokenizer, splits.heldout, max_new_tokens=length)
        right = judging.passed(texts, splits.heldout)
        return {"heldout_passed": sum(right) / len(right)}

    if not (folder / "before.json").exists():
        _write(measured(*models.load(warm)), folder / "before.json")
    reward = judging.TimedReward()
    rows = [{"prompt": prompt(e)} | {c: e[c] for c in judging.COLUMNS} for e in splits.rl]
    names = (name for name in grpo.GRPOSettings.__dataclass_fields__ if name != "seed")
    told = {name: getattr(args, name) for name in names}
    with Bar(console, f"GRPO, {seed}", args.steps) as advance:

        def on_step(step: dict[str, Any]) -> None:
            reward.log(step)
            advance(f"reward {step['reward']:.3f} entropy {step['entropy']:.3f}", step["step"])

        trainer = grpo.train(
            warm, folder / "grpo", reward, rows, heldout,
            grpo.GRPOSettings(seed=seed, **told), on_step=on_step,
        )  # fmt: skip
    run = {
        "seed": seed,
        "settings": _settings(args),
        "before": json.loads((folder / "before.json").read_text()),
        "after": measured(trainer.model, trainer.processing_class),
        "cpu_seconds": time.process_time() - started,  # of this process: the sandbox's are others
        "steps": grpo.steps(trainer),
    }
    shown = figures.example(run, splits.heldout, folder)
    (folder / "example.md").write_text(shown or "no chart was solved that was not before\n")
    return run


def _warm_up(args: argparse.Namespace, seed: int, splits: Any, folder: Path, console: Any) -> Path:
    import model as models
    from charts import PIECES, to_learn_from, with_flaws
    from runs import Bar
    from tasks import prompt
    from transformers import set_seed

    if folder.exists():
        return folder
    set_seed(seed)
    number = args.warmup_steps * args.warmup_batch_size
    entries = to_learn_from(splits, number, seed=seed, difficulties=args.difficulties)
    found = with_flaws(entries, args.flawed_fraction, seed=seed)
    tokenizer = models.build_tokenizer(
        (prompt(e) + e["answer"] for e in found), args.vocab_size, pieces=PIECES
    )
    model = models.build_model(
        tokenizer,
        hidden_size=args.hidden_size,
        num_layers=args.layers,
        vocab_size=args.vocab_size,
        convolutions=True,
    )
    with Bar(console, f"warm-up, {seed}", args.warmup_steps) as advance:
        models.warm_up(
            model,
            tokenizer,
            found,
            steps=args.warmup_steps,
            batch_size=args.warmup_batch_size,
            learning_rate=args.warmup_learning_rate,
            by_length=True,
            on_step=lambda loss: advance(f"loss {loss:.3f}"),
        )
    models.save(model, tokenizer, folder)
    return folder


def _write(found: dict[str, Any], path: Path) -> None:
    """Beside its place and renamed: what is there is whole."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    partial.rename(path)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the same command goes on from the last checkpoint")
