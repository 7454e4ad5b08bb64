"""The answer most completions of a prompt agree on, as the label of all of them.

TTRL: test-time reinforcement learning (arXiv:2504.16084); docs/rewards/majority_vote.md.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from logpi.rewards import contract
from logpi.rewards.answers import extract_answer, normal_form
from logpi.rewards.contract import Details, Reward
from logpi.rewards.equivalence import Comparison, prepare


@dataclass(frozen=True)
class MajorityVote(Reward):
    """1.0 for completions that give their group's most frequent answer, else 0.0.

    Votes are counted by the same equivalence that grades: 0.5 and \\frac12 are one answer. A
    completion without an answer does not vote and gets 0.0, and a group without any answer has no
    label: 0.0 for all of it.

    A group is the completions of one prompt: those that share a value of the column `group_ids` if
    there is one; else `group_size` in a row, if that is set; else those with equal `prompts`.

    Attributes:
        num_votes: how many of each group vote, from its first; None: all. A smaller group raises.
        num_samples: how many of each group are kept to train on; None: all. The part `kept` says
            which. All are scored: what to do with the others is the trainer's.
        keep: "first" keeps the first of a group; "seeded" draws them by `seed` and the group.
        tie: among equally frequent answers "first" takes the one that came first, "seeded" draws.
        seed: of the draws; they depend on nothing else but the group's place or prompt.
        group_size: completions of a prompt, where they come in a row.
        extract: the answer of a text, or None; must not raise. `boxed_answer` takes boxes alone.
        symbolic_seconds: CPU seconds a group for comparing expressions (`Comparison`); needs
            logpi[rewards] unless 0.
        label: the column with the true answers. They measure and never change a reward.

    Parts: `class` (of the answer within its group, by first appearance; -1: no answer), `kept`, and
    with labels `correct`.
    Metrics, means over groups: `majority_ratio` (votes for the label of all votes), `answered`,
    `tied`, `symbolic_skipped`; with labels `label_accuracy`, which is maj@n, `accuracy` and
    `pass@n` of the votes, and `reward_accuracy`, `kept_accuracy`, `kept_pass@n` of those kept.
    """

    num_votes: int | None = None
    num_samples: int | None = None
    keep: str = "first"
    tie: str = "first"
    seed: int = 0
    group_size: int | None = None
    extract: Callable[[str], str | None] = extract_answer
    symbolic_seconds: float = 0.5
    label: str = "answer"

    def __post_init__(self) -> None:
        for name in ("num_votes", "num_samples", "group_size"):
            if getattr(self, name) is not None:
                contract.check_count(name, getattr(self, name))
        contract.check_choice("keep", self.keep, "first", "seeded")
        contract.check_choice("tie", self.tie, "first", "seeded")
        contract.check_number("symbolic_seconds", self.symbolic_seconds, 0)
        if not callable(self.extract):
            raise TypeError(f"extract: expected a function, got {type(self.extract).__name__}")
        prepare(self.symbolic_seconds)

    def _details(self, texts: list[str], columns: Mapping[str, Any]) -> Details:
        labels = contract.optional_column(columns, self.label, len(texts))
        if labels is not None and None in labels:
            if any(label is not None for label in labels):
                row = labels.index(None)
                raise ValueError(f"{self.label}[{row}]: expected a label, as others have, got None")
            labels = None
        rewards, classes, kept = ([0.0] * len(texts) for _ in range(3))
        correct = None if labels is None else [0.0] * len(texts)
        measured: list[dict[str, float]] = []
        for key, rows in self._groups(len(texts), columns):
            label = None if labels is None else str(labels[rows[0]])
            group = self._group(key, [texts[row] for row in rows], label)
            for i, row in enumerate(rows):
                rewards[row] = group.rewards[i]
                classes[row] = group.parts["class"][i]
                kept[row] = group.parts["kept"][i]
                if correct is not None:
                    correct[row] = group.parts["correct"][i]
            measured.append(group.metrics)
        parts = {"class": classes, "kept": kept}
        if correct is not None:
            parts["correct"] = correct
        names = measured[0] if measured else ()
        return Details(
            rewards, parts, {name: contract.mean([m[name] for m in measured]) for name in names}
        )

    def _groups(self, size: int, columns: Mapping[str, Any]) -> list[tuple[str, list[int]]]:
        ids = contract.optional_column(columns, "group_ids", size)
        if ids is None and self.group_size is not None:
            if size % self.group_size:
                raise ValueError(
                    f"completions: expected a multiple of group_size {self.group_size}, got {size}"
                )
            ids = [row // self.group_size for row in range(size)]
        if ids is None:
            ids = contract.optional_column(columns, "prompts", size)
        if ids is None:
            raise ValueError(
                "group_ids: expected this column, or prompts, or a group_size, to know which "
                "completions answer the same prompt"
            )
        groups: dict[str, list[int]] = {}
        for row, value in enumerate(ids):
            # A chat is a list of dicts, which is no key.
            simple = isinstance(value, (str, int))
            key = str(value) if simple else json.dumps(value, default=str)
            groups.setdefault(key, []).append(row)
        for key, rows in groups.items():
            for name in ("num_votes", "num_samples"):
                if (wanted := getattr(self, name)) is not None and len(rows) < wanted:
                    raise ValueError(
                        f"{name}: expected {wanted} completions a prompt, got {len(rows)} for "
                        f"{key[:80]!r}; are they spread over processes?"
                    )
        return list(groups.items())

    def _group(self, key: str, texts: Sequence[str], label: str | None) -> Details:
        answers = [self.extract(text) for text in texts]
        forms = [None if answer is None else normal_form(answer) for answer in answers]
        votes = len(texts) if self.num_votes is None else self.num_votes
        comparison = Comparison(self.symbolic_seconds)
        classes = comparison.classes(forms)
        counts = Counter(one for one in classes[:votes] if one is not None)
        most = max(counts.values(), default=0)
        leaders = sorted(one for one, count in counts.items() if count == most)
        winner = leaders[0] if leaders else None
        if len(leaders) > 1 and self.tie == "seeded":
            winner = random.Random(f"{self.seed}/tie/{key}").choice(leaders)
        rewards = [float(one is not None and one == winner) for one in classes]
        kept = self._kept(key, len(texts))
        metrics = {
            "majority_ratio": most / votes,
            "answered": sum(counts.values()) / votes,
            "tied": float(len(leaders) > 1),
            "symbolic_skipped": float(comparison.skipped),
        }
        parts = {"class": [-1.0 if one is None else float(one) for one in classes], "kept": kept}
        if label is not None:
            measure = Comparison(self.symbolic_seconds)  # its own: labels change no reward
            true = normal_form(label)
            firsts = [classes.index(one) for one in range(max(counts, default=-1) + 1)]
            verdicts = {forms[row]: measure.same(true, forms[row]) for row in firsts}
            correct = [
                float(verdicts[form] if form in verdicts else measure.same(true, form))
                for form in forms
            ]
            parts["correct"] = correct
            here = [row for row, flag in enumerate(kept) if flag]
            label_row = None if winner is None else classes.index(winner)
            metrics |= {
                "label_accuracy": 0.0 if label_row is None else correct[label_row],
                "accuracy": contract.mean(correct[:votes]),
                "pass@n": max(correct[:votes]),
                "reward_accuracy": contract.mean(
                    [float(rewards[row] == correct[row]) for row in here]
                ),
                "kept_accuracy": contract.mean([correct[row] for row in here]),
                "kept_pass@n": max(correct[row] for row in here),
            }
        return Details(rewards, parts, metrics)

    def _kept(self, key: str, size: int) -> list[float]:
        if self.num_samples is None:
            return [1.0] * size
        chosen: Sequence[int] = range(self.num_samples)
        if self.keep == "seeded":
            chosen = random.Random(f"{self.seed}/keep/{key}").sample(range(size), self.num_samples)
        wanted = set(chosen)
        return [float(row in wanted) for row in range(size)]
