"""LLM-PEE on a synthetic corpus of 1000 event types: recall, partition, extract, merge, label."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_NOT_THE_RUN = ("out", "fresh", "seeds", "threads")
OnStep = Callable[[int, float], None]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Interrupted? The same command goes on from the last checkpoint.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--seeds", nargs="+", type=int, default=[0], help="of the corpus, weights and draws")
    add("--types", type=int, default=1000, help="in the inventory, at most 1000")
    add("--out", type=Path, default=_HERE / "results" / "run")
    add("--fresh", action="store_true", help="delete what --out holds instead of going on with it")
    add("--threads", type=int, default=2)

    model = parser.add_argument_group("models")
    model.add_argument("--sentences", type=int, default=6000, help="to train on")
    model.add_argument("--recall-steps", type=int, default=700)
    model.add_argument("--steps", type=int, default=2000, help="of the language model")
    model.add_argument("--batch-size", type=int, default=32)
    model.add_argument("--learning-rate", type=float, default=4e-3)
    model.add_argument("--hidden-size", type=int, default=96)
    model.add_argument("--layers", type=int, default=3)

    system = parser.add_argument_group("extraction and its measurements")
    system.add_argument("--top-k", type=int, default=20, help="types that are asked about")
    system.add_argument("--parts", type=int, default=4, help="prompts they are dealt to")
    system.add_argument("--test", type=int, default=200, help="sentences of the tables")
    system.add_argument("--test-by-types", type=int, default=80, help="of each point of the curve")
    system.add_argument("--test-all", type=int, default=30, help="sentences asked about all types")
    system.add_argument("--by-types", nargs="+", type=int, default=[50, 100, 250, 500, 1000])
    system.add_argument("--labels", type=int, default=120, help="sentences to annotate")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[int, dict[str, Any]]:
    """Runs what is not yet there; returns the measurements of each seed."""
    args = arguments(argv)
    if args.fresh:
        shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True, exist_ok=True)
    asked = {key: value for key, value in vars(args).items() if key not in _NOT_THE_RUN}
    path = args.out / "settings.json"
    if path.exists() and json.loads(path.read_text()) != asked:
        sys.exit(f"{args.out} holds a run with other settings: --out or --fresh?")
    path.write_text(json.dumps(asked, indent=1) + "\n")

    sys.path.insert(0, str(_HERE))
    import torch

    import report

    torch.set_num_threads(args.threads)
    results = {seed: _seed(args, seed) for seed in args.seeds}
    print(report.table(results))
    print(f"report: {report.write(results, asked, args.out)}")
    return results


def _seed(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One seed's measurements, stage by stage; a stage whose file is there is read."""
    import lm
    import recall
    import torch
    from corpus import Corpus
    from measure import Measure

    folder = args.out / f"seed{seed}"
    folder.mkdir(exist_ok=True)
    corpus = Corpus(seed=seed, num_types=args.types)
    tokenizer = lm.build_tokenizer(corpus.words())
    sentences = corpus.training(args.sentences, seed=seed)
    torch.manual_seed(seed)
    encoder = recall.LateInteraction(tokenizer)
    model = lm.build_model(tokenizer, hidden_size=args.hidden_size, num_layers=args.layers)

    def learn_to_recall(progress: OnStep) -> dict[str, float]:
        return recall.train(encoder, sentences, corpus.seen_types, steps=args.recall_steps,
                            seed=seed, on_step=progress)  # fmt: skip

    def learn_to_extract(progress: OnStep) -> dict[str, float]:
        told = encoder.recall([one.text for one in sentences], corpus.seen_types)
        samples = lm.Samples(sentences, corpus.seen_types, told, top_k=args.top_k,
                             num_parts=args.parts, seed=seed)  # fmt: skip
        return lm.train(model, tokenizer, samples, steps=args.steps, batch_size=args.batch_size,
                        learning_rate=args.learning_rate, on_step=progress,
                        checkpoint=folder / "training.pt")  # fmt: skip

    done: dict[str, Any] = {
        "recall training": _trained(folder / "encoder.pt", encoder, learn_to_recall,
                                    f"seed {seed} recall", args.recall_steps),
        "training": _trained(folder / "model.pt", model, learn_to_extract,
                             f"seed {seed} extraction", args.steps),
    }  # fmt: skip
    done["weights"] = sum(weight.numel() for weight in model.parameters())
    measure = Measure(corpus, encoder, model, tokenizer, args, seed)
    for name in ("recall", "extraction", "ablations", "by_types", "labels", "examples"):
        path = folder / f"{name}.json"
        if not path.exists():
            wall, cpu = time.perf_counter(), time.process_time()
            print(f"seed {seed} {name} ...", flush=True)
            found = getattr(measure, name)()
            times = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps({"found": found} | times, indent=1) + "\n")
            partial.replace(path)  # whole, or not at all
        done[name] = json.loads(path.read_text())
    return done


def _trained(path: Path, module: Any, learn: Callable[[OnStep], dict[str, float]], name: str,
             steps: int) -> dict[str, float]:  # fmt: skip
    """Trains `module`, or loads what an earlier run trained; returns how long it took."""
    import torch

    if not path.exists():
        with _Bar(name, steps) as bar:
            times = learn(bar.advance)
        partial = path.with_suffix(".partial")
        torch.save({"weights": module.state_dict(), "times": times}, partial)
        partial.replace(path)
    saved = torch.load(path, weights_only=True)
    module.load_state_dict(saved["weights"])
    module.eval()
    return dict(saved["times"])


class _Bar:
    """A progress bar; `advance` is told of each step that was done, by its number."""

    def __init__(self, name: str, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self.progress = Progress(TextColumn("{task.description:<18}"), BarColumn(),
                                 MofNCompleteColumn(), Remaining(),
                                 TextColumn("{task.fields[text]}"))  # fmt: skip
        self.task = self.progress.add_task(name, total=total, text="")

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def advance(self, step: int, loss: float) -> None:
        self.progress.update(self.task, completed=step + 1, text=f"loss {loss:.2f}")

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the same command goes on from the last checkpoint")
