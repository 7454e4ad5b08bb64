"""Programs of a model under their tests: the reward, its seconds, and pass@k by difficulty."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import model as models
import torch
from charts import Entry

from logpi.rewards.code import Limits, ProgramTests, pass_at_k_by_difficulty

COLUMNS = ("test", "entry_point", "difficulty")  # of an entry, what the reward reads
LIMITS = Limits(cpu_seconds=1)  # tests take milliseconds; a loop that never ends takes it all


@dataclass
class TimedReward:
    """`ProgramTests` as TRL calls it, with the seconds it takes and what it is given."""

    reward: ProgramTests = field(
        default_factory=lambda: ProgramTests(score="fraction", limits=LIMITS)
    )
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
    return [score == 1.0 for score in ProgramTests(score="all", limits=LIMITS)(texts, **columns)]


def greedy(model: Any, tokenizer: Any, entries: list[Entry], *, max_new_tokens: int) -> list[str]:
    """The most likely completion of each entry."""
    return _texts(model, tokenizer, entries, max_new_tokens=max_new_tokens)


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
        num_correct, difficulty, greedy_texts: of each entry.
    """
    torch.manual_seed(seed)
    texts: list[str] = []
    for start in range(0, len(entries), 36):
        asked = entries[start : start + 36]
        texts += _texts(model, tokenizer, asked, max_new_tokens=max_new_tokens, samples=samples)
    verdicts = passed(texts, [entry for entry in entries for _ in range(samples)])
    correct = [sum(verdicts[i : i + samples]) for i in range(0, len(verdicts), samples)]
    difficulty = [entry["difficulty"] for entry in entries]
    numbers = [samples] * len(entries)
    found: dict[str, Any] = {
        f"pass@{k}": {
            which: (estimate.value, *estimate.interval)
            for which, estimate in pass_at_k_by_difficulty(numbers, correct, difficulty, k).items()
        }
        for k in ks
    }
    likely = greedy(model, tokenizer, entries, max_new_tokens=max_new_tokens)
    right = passed(likely, entries)
    found["greedy"] = {
        which: _mean([r for r, d in zip(right, difficulty, strict=True) if which in (d, "all")])
        for which in (*dict.fromkeys(difficulty), "all")
    }
    return found | {
        "num_correct": correct,
        "difficulty": difficulty,
        "greedy_texts": likely,
        "greedy_passed": right,
    }


def _texts(model: Any, tokenizer: Any, entries: list[Entry], **how: Any) -> list[str]:
    ids, mask = models.complete(model, tokenizer, entries, **how)
    texts: list[str] = tokenizer.batch_decode(ids[:, mask.shape[1] :], skip_special_tokens=True)
    return texts


def _mean(values: list[bool]) -> float:
    return sum(values) / len(values)
