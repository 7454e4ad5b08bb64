"""SSRL on a laptop: a tiny model searches what it knows, and then meets a real index."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
# What a variant changes of SSRL: masked information from the model's own memory.
VARIANTS: dict[str, dict[str, Any]] = {
    "ssrl": {},
    "unmasked": {"mask_information": False},
    "index": {"information": "index"},
}
_NOT_THE_RUN = ("variant", "seeds", "out", "fresh")  # leave every number of one run as it is


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Interrupted? The same command goes on from the last checkpoint; finished runs are "
        "read.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--variant", nargs="+", choices=tuple(VARIANTS), default=["ssrl"],
        help="unmasked: information is trained on, too; index: RL with the real index")  # fmt: skip
    add("--seeds", nargs="+", type=int, default=[0], help="of countries, weights and draws")
    add("--steps", type=int, default=60, help="of GRPO")
    add("--out", type=Path, default=_HERE / "results", help="results folder")
    add("--fresh", action="store_true", help="delete what --out holds instead of going on with it")

    data = parser.add_argument_group("data")
    data.add_argument("--countries", type=int, default=120, help="the most populous")
    data.add_argument("--warmup-fraction", type=float, default=0.4, help="of them, in questions")
    data.add_argument("--rl-fraction", type=float, default=0.3, help="the rest is held out")
    data.add_argument("--popularity", type=float, default=0.0,
        help="a document is met population ** this times, up to a factor")  # fmt: skip
    data.add_argument("--heldout", type=int, default=150, help="questions of one hop, and of two")

    model = parser.add_argument_group("model and its supervised warm-up")
    model.add_argument("--hidden-size", type=int, default=96)
    model.add_argument("--layers", type=int, default=2)
    model.add_argument("--warmup-steps", type=int, default=600)
    model.add_argument("--documents-per-step", type=int, default=96)
    model.add_argument("--demonstrations-per-step", type=int, default=16)
    model.add_argument("--made-up-per-step", type=int, default=8, help="demonstrations, too")
    model.add_argument("--warmup-learning-rate", type=float, default=5e-3)
    model.add_argument("--mix", type=float, nargs=3, default=[0.7, 0.15, 0.15],
        help="of demonstrations that search not at all, once, for all")  # fmt: skip

    rl = parser.add_argument_group("reinforcement learning")
    rl.add_argument("--questions-per-step", type=int, default=16)
    rl.add_argument("--num-generations", type=int, default=8, help="completions a question")
    rl.add_argument("--mini-batches", type=int, default=2, help="of a step; an update each")
    rl.add_argument("--learning-rate", type=float, default=3e-4)
    rl.add_argument("--max-new-tokens", type=int, default=64)
    rl.add_argument("--top-k", type=int, default=1, help="passages that the index returns")
    rl.add_argument("--eval-every", type=int, default=20, help="steps; checkpoints too")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Runs what is not yet there; returns the metrics of every seed by variant."""
    args = arguments(argv)
    sys.path[:0] = [str(_HERE), str(_HERE.parent / "reasoning_gym")]
    import runs

    runs.go_on_or_refuse(args.out, runs.settings(args, _NOT_THE_RUN), fresh=args.fresh)
    runs.quiet()
    import summary
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in args.variant}
    for seed in args.seeds:
        for variant in args.variant:
            path = args.out / f"seed{seed}" / variant / "metrics.json"
            if not path.exists():
                _Run(args, seed, variant, console).finish(path)
            results[variant].append(json.loads(path.read_text()))
    summary.plot(results, args.out / "curves.png")
    console.print(summary.table(results))
    console.print(summary.rollouts(results))
    console.print(f"results: {args.out}")
    return results


class _Run:
    """One variant on one seed: what it is made of, and its phases."""

    def __init__(self, args: argparse.Namespace, seed: int, variant: str, console: Any) -> None:
        import facts
        import grpo
        import memory
        import model as models
        import runs
        import torch

        from logpi.rewards.information import LocalIndex, RealSearch

        self.args, self.seed, self.variant, self.console = args, seed, variant, console
        self.facts = facts.load(
            seed=seed,
            warmup_fraction=args.warmup_fraction,
            rl_fraction=args.rl_fraction,
            popularity=args.popularity,
            limit=args.countries,
        )
        mix = dict(zip(facts.STRATEGIES, args.mix, strict=True))
        self.shown = facts.demonstrations(self.facts.warmup, mix, seed=seed)
        self.heldout = {
            f"{hops}": facts.sample(self.facts.heldout, hops, args.heldout, seed=seed)
            for hops in (1, 2)
        }
        self.words = memory.vocabulary(self.facts, self.shown)
        self.engine = RealSearch(LocalIndex(self.facts.passages), top_k=args.top_k)
        known = vars(args) | {"seed": seed, "information": "memory", "mask_information": True}
        known |= VARIANTS[variant]
        self.told = runs.chosen(grpo.GRPOSettings, known)
        self.warm_up_told = runs.chosen(memory.WarmUpSettings, known)
        torch.manual_seed(seed)
        self.model = models.build_model(
            self.words,
            hidden_size=args.hidden_size,
            num_layers=args.layers,
            vocab_size=len(self.words),
        )

    def finish(self, path: Path) -> None:
        """From the warm model, or from the last checkpoint, to metrics.json."""
        import grpo
        import runs
        import torch

        warmup_seconds = self._warm()
        before = self._everywhere()
        told = self.told
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=told.learning_rate, weight_decay=0.0
        )
        log: list[dict[str, Any]] = []
        checkpoint = path.with_name("checkpoint.pt")
        path.parent.mkdir(parents=True, exist_ok=True)
        if checkpoint.exists():
            saved = torch.load(checkpoint, weights_only=True)
            self.model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            log = saved["log"]
        engine = None if told.information == "memory" else self.engine
        self.model.train()
        with runs.Bar(self.console, f"seed {self.seed} {self.variant}", told.steps) as advance:
            for number in range(len(log), told.steps):
                cpu = time.process_time()
                found = grpo.step(
                    self.model,
                    optimizer,
                    self.words,
                    self.facts.rl,
                    told,
                    engine,
                    number=number,
                )
                log.append({"step": number + 1, **found})
                log[-1]["cpu_seconds"] = time.process_time() - cpu
                if (number + 1) % self.args.eval_every == 0 or number + 1 == told.steps:
                    log[-1]["heldout"] = self._measured("memory")
                    log[-1]["sampled"] = self._measured("memory", greedy=False)
                    state = {"model": self.model.state_dict(), "optimizer": optimizer.state_dict()}
                    runs.save(state | {"log": log}, checkpoint)
                em = "EM {em:.2f}, form {format:.2f}, {searches:.1f} searches".format(**found)
                advance(em, number + 1)
        metrics = {
            "variant": self.variant,
            "seed": self.seed,
            "settings": runs.settings(self.args, _NOT_THE_RUN) | VARIANTS[self.variant],
            "countries": len(self.facts.countries),
            "passages": len(self.facts.passages),
            "words": len(self.words),
            "weights": sum(p.numel() for p in self.model.parameters()),
            "heldout": {hops: len(asked) for hops, asked in self.heldout.items()},
            "before": before,
            "after": self._everywhere(),
            "cpu_seconds": warmup_seconds + sum(step["cpu_seconds"] for step in log),
            "steps": log,
        }
        runs.write_json(metrics, path)

    def _warm(self) -> float:
        """Puts into the model what all variants of a seed start from; the CPU seconds it took."""
        import memory
        import runs
        import torch

        path = self.args.out / f"seed{self.seed}" / "warm.pt"
        if path.exists():
            saved = torch.load(path, weights_only=True)
            self.model.load_state_dict(saved["model"])
            return float(saved["cpu_seconds"])
        cpu = time.process_time()
        steps = self.args.warmup_steps
        with runs.Bar(self.console, f"seed {self.seed} warm-up", steps) as advance:
            memory.warm_up(
                self.model,
                self.words,
                self.facts,
                self.shown,
                self.warm_up_told,
                seed=self.seed,
                on_step=lambda loss: advance(f"loss {loss:.2f}"),
            )
        seconds = time.process_time() - cpu
        path.parent.mkdir(parents=True, exist_ok=True)
        runs.save({"model": self.model.state_dict(), "cpu_seconds": seconds}, path)
        return seconds

    def _everywhere(self) -> dict[str, Any]:
        from rollout import INFORMATION

        found = {information: self._measured(information) for information in INFORMATION}
        return found | {"sampled": self._measured("memory", greedy=False)}

    def _measured(self, information: str, *, greedy: bool = True) -> dict[str, dict[str, float]]:
        """By hops, what held-out questions are answered."""
        from evaluation import evaluate

        passages = frozenset(self.facts.passages)
        return {
            hops: evaluate(
                self.model,
                self.words,
                asked,
                self.engine,
                passages,
                information=information,
                max_new_tokens=self.args.max_new_tokens,
                greedy=greedy,
            )
            for hops, asked in self.heldout.items()
        }


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the same command goes on from the last checkpoint")
