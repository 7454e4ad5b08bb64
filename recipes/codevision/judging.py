"""Programs of a model under their tests: the reward, its seconds, and pass@k by difficulty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from time import perf_counter
from typing import Any

import model as models
import torch
from charts import FAMILIES, Entry

from logpi.rewards.code import Limits, ProgramTests, pass_at_k_by_difficulty

COLUMNS = ("test", "entry_point", "difficulty")  # of an entry, what the reward reads
LIMITS = Limits(cpu_seconds=1)  # tests take milliseconds; a loop that never ends takes it all


def program_tests(score: str) -> ProgramTests:
    return ProgramTests(score=score, limits=LIMITS)


@dataclass
class TimedReward:
    """`ProgramTests` as TRL calls it, with the seconds it takes and what it is given."""

    reward: ProgramTests
    seconds: float = 0.0
    programs: int = 0
    different: int = 0

    __name__ = "program_tests"

    def __call__(self, completions: list[str], **columns: Any) -> list[float]:
        start = perf_counter()
        rewards = self.reward(completions, **columns)
        self.seconds += perf_counter() - start
        self.programs += len(completions)
        self.different += len(set(zip(completions, map(tuple, columns["test"]), strict=True)))
        return rewards

    def log(self, step: dict[str, Any]) -> None:
        """Adds to a step's log what has come together since the last."""
        step["sandbox_seconds"] = self.seconds
        step["programs"], step["different_programs"] = self.programs, self.different
        self.seconds, self.programs, self.different = 0.0, 0, 0


def passed(texts: list[str], entries: list[Entry]) -> list[bool]:
    """Whether each text is a program that passes every test of its entry."""
    columns = {name: [entry[name] for entry in entries] for name in COLUMNS}
    return [score == 1.0 for score in program_tests("all")(texts, **columns)]


def sampled(
    model: Any,
    tokenizer: Any,
    entries: list[Entry],
    *,
    samples: int,
    max_new_tokens: int,
    seed: int,
) -> list[str]:
    """So many programs of each entry at temperature 1; the global generator stays where it is."""
    texts: list[str] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(entries), 36):
            asked = entries[start : start + 36]
            texts += _texts(model, tokenizer, asked, max_new_tokens=max_new_tokens, samples=samples)
    return texts


def pass_at_1(
    model: Any, tokenizer: Any, entries: list[Entry], *, samples: int, **how: Any
) -> dict[str, float]:
    """By difficulty and of "all", under "heldout/": pass@1 from few samples, for a curve."""
    asked = [entry for entry in entries for _ in range(samples)]
    verdicts = passed(sampled(model, tokenizer, entries, samples=samples, **how), asked)
    return {f"heldout/{which}": share for which, share in _by_difficulty(verdicts, asked).items()}


def measure(
    model: Any,
    tokenizer: Any,
    entries: list[Entry],
    *,
    samples: int,
    ks: tuple[int, ...],
    max_new_tokens: int,
    seed: int,
) -> dict[str, Any]:
    """What a model knows of these entries, at temperature 1 and by its most likely programs.

    Returns:
        pass@k for each of `ks`: by difficulty and of "all", (value, low, high) of 95 %.
        greedy: by difficulty and of "all", the share of most likely programs that pass.
        num_correct, difficulty, greedy_texts, greedy_passed: of each entry.
    """
    texts = sampled(
        model, tokenizer, entries, samples=samples, max_new_tokens=max_new_tokens, seed=seed
    )
    likely = _texts(model, tokenizer, entries, max_new_tokens=max_new_tokens)
    verdicts = passed(likely + texts, entries + [e for e in entries for _ in range(samples)])
    right, rest = verdicts[: len(entries)], verdicts[len(entries) :]
    correct = [sum(rest[i : i + samples]) for i in range(0, len(rest), samples)]
    difficulty = [entry["difficulty"] for entry in entries]
    numbers = [samples] * len(entries)
    found: dict[str, Any] = {
        f"pass@{k}": {
            which: (estimate.value, *estimate.interval)
            for which, estimate in pass_at_k_by_difficulty(numbers, correct, difficulty, k).items()
        }
        for k in ks
    }
    return found | {
        "greedy": _by_difficulty(right, entries),
        "num_correct": correct,
        "difficulty": difficulty,
        "greedy_texts": likely,
        "greedy_passed": right,
    }


def _texts(model: Any, tokenizer: Any, entries: list[Entry], **how: Any) -> list[str]:
    ids, mask = models.complete(model, tokenizer, entries, **how)
    texts: list[str] = tokenizer.batch_decode(ids[:, mask.shape[1] :], skip_special_tokens=True)
    return texts


def _by_difficulty(values: Sequence[float], entries: list[Entry]) -> dict[str, float]:
    found = {
        which: [v for v, e in zip(values, entries, strict=True) if e["difficulty"] == which]
        for which in FAMILIES
    }
    return {which: fmean(some) for which, some in found.items()} | {"all": fmean(values)}
