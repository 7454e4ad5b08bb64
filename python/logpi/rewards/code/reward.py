"""Does the program do what the flowchart says? Code-Vision (arXiv:2502.11829);
docs/rewards/code.md."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from logpi.rewards import contract
from logpi.rewards.code.extract import extract_program
from logpi.rewards.code.jail.judge import names_of_the_program
from logpi.rewards.code.sandbox import Job, Limits, Run, Sandbox
from logpi.rewards.contract import Details, Reward
from logpi.rewards.estimators import Estimate, pass_at_k


@dataclass(frozen=True)
class ProgramTests(Reward):
    """Runs the program of each completion against its tests, in a sandbox.

    Attributes:
        score: "fraction", of the assertions that pass; "all", 1.0 if every one does.
        block: "last" or "first" program of a completion that has several.
        limits: of each program.
        workers: programs that run at once; None: one for each CPU.
        strict: refuse a machine that cannot enforce the limits (SandboxError, when the reward is
            made); False: run there all the same.
        target: the column with the tests: a text of Python, or a list of texts, a completion.

    Columns besides: `entry_point`, the name of the function that is tested (otherwise whatever the
    tests call), and `difficulty`, by which the metrics are told apart.

    Parts: `fraction`, `passed`, `program` (there is one). Metrics: the mean of each, and `passed`
    of each difficulty.
    """

    score: str = "fraction"
    block: str = "last"
    limits: Limits = field(default_factory=Limits)
    workers: int | None = None
    strict: bool = True
    target: str = "test"

    def __post_init__(self) -> None:
        contract.check_choice("score", self.score, "fraction", "all")
        contract.check_choice("block", self.block, "last", "first")
        if not isinstance(self.limits, Limits):
            raise TypeError(f"limits: expected Limits, got {type(self.limits).__name__}")
        if self.workers is not None:
            contract.check_count("workers", self.workers)
        self._sandbox()

    def runs(self, completions: Sequence[contract.Completion], **columns: Any) -> list[Run]:
        """What became of each assertion of each completion, with the reasons."""
        return self._runs(contract.texts_of(completions), columns)[0]

    def _details(self, texts: list[str], columns: Mapping[str, Any]) -> Details:
        runs, programs = self._runs(texts, columns)
        parts = {
            "fraction": [run.fraction for run in runs],
            "passed": [float(run.passed) for run in runs],
            "program": [float(program is not None) for program in programs],
        }
        metrics = {name: contract.mean(part) for name, part in parts.items()}
        difficulty = contract.optional_column(columns, "difficulty", len(texts))
        by_difficulty = defaultdict(list)
        for which, passed in zip(difficulty or (), parts["passed"], strict=bool(difficulty)):
            by_difficulty[which].append(passed)
        metrics |= {f"passed/{d}": contract.mean(passed) for d, passed in by_difficulty.items()}
        rewards = parts["fraction" if self.score == "fraction" else "passed"]
        return Details(list(rewards), parts, metrics)

    def _runs(
        self, texts: list[str], columns: Mapping[str, Any]
    ) -> tuple[list[Run], list[str | None]]:
        tests = [
            _tests(f"{self.target}[{i}]", value)
            for i, value in enumerate(contract.column(columns, self.target, len(texts)))
        ]
        names = contract.optional_column(columns, "entry_point", len(texts)) or [None] * len(texts)
        programs = [
            extract_program(text, name or _names(test), block=self.block)
            for text, test, name in zip(texts, tests, names, strict=True)
        ]
        jobs = [
            Job(program, test, name) if program is not None else None
            for program, test, name in zip(programs, tests, names, strict=True)
        ]
        different = list({job for job in jobs if job is not None})  # a group repeats itself
        found = dict(zip(different, self._sandbox().run_all(different), strict=True))
        return [found[job] if job else Run(()) for job in jobs], programs

    def _sandbox(self) -> Sandbox:
        """One for all rewards of the same settings."""
        key = (self.limits, self.workers, self.strict)
        with _lock:
            if key not in _sandboxes:
                _sandboxes[key] = Sandbox(self.limits, workers=self.workers, strict=self.strict)
            return _sandboxes[key]


_sandboxes: dict[tuple[Limits, int | None, bool], Sandbox] = {}
_lock = threading.Lock()


def _tests(name: str, value: Any) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, Sequence) or not all(isinstance(one, str) for one in found):
        raise ValueError(f"{name}: expected a text or a list of texts, got {value!r:.80}")
    return tuple(found)


@lru_cache(4096)
def _names(tests: tuple[str, ...]) -> frozenset[str]:
    return frozenset(names_of_the_program(list(tests), None))


def pass_at_k_by_difficulty(
    num_samples: Sequence[int], num_correct: Sequence[int], difficulty: Sequence[str], k: int
) -> dict[str, Estimate]:
    """`pass_at_k` of each difficulty, in the order in which they first come, and of "all".

    Args:
        num_samples, num_correct: of each problem.
        difficulty: of each problem.
        k: samples of a try.
    """
    if not len(num_samples) == len(num_correct) == len(difficulty):
        raise ValueError(
            f"difficulty: expected one for each problem, got {len(difficulty)} for "
            f"{len(num_samples)} num_samples and {len(num_correct)} num_correct"
        )
    problems = defaultdict(list)
    for which, n, c in zip(difficulty, num_samples, num_correct, strict=True):
        problems[which].append((n, c))
    problems["all"] = list(zip(num_samples, num_correct, strict=True))
    return {
        which: pass_at_k([n for n, _ in found], [c for _, c in found], k)
        for which, found in problems.items()
    }
