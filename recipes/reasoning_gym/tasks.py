"""Questions and verifiers of reasoning-gym, split so that no question is in two places."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from typing import Any

from countdown import is_arithmetic

import reasoning_gym

Entry = dict[str, Any]  # question, answer, metadata: as reasoning-gym makes them

# A few thousand different questions, which a model of 0.6 million weights learns in a minute.
CONFIGS: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1},
    "countdown": {  # a dozen solutions each
        "min_numbers": 4, "max_numbers": 4, "min_value": 1, "max_value": 6,
        "min_target": 1, "max_target": 20,
    },
    "spell_backward": {"min_word_len": 4, "max_word_len": 6},
}  # fmt: skip


@dataclass(frozen=True)
class Splits:
    """Three lists of entries that share no question.

    Attributes:
        heldout: never trained on; the accuracy is measured here.
        warmup: with answers, for the supervised warm-up.
        rl: for GRPO, which sees the questions and, through the reward alone, the answers.
    """

    heldout: list[Entry]
    warmup: list[Entry]
    rl: list[Entry]


class Task:
    """A reasoning-gym dataset under its own verifier."""

    def __init__(self, name: str, *, seed: int, heldout: int, warmup: int, rl: int) -> None:
        self.name = name
        total = heldout + warmup + rl
        # reasoning-gym draws entry i from Random(seed + i): seeds that lie close share entries.
        self.dataset = reasoning_gym.create_dataset(
            name, seed=seed * 10_000_000, size=20 * total, **CONFIGS[name]
        )
        unique: dict[Any, Entry] = {}
        for entry in self.dataset:
            unique.setdefault(_problem(entry), entry)
            if len(unique) == total:
                break
        else:
            raise ValueError(
                f"{name} {CONFIGS[name]}: expected {total} different questions, "
                f"found {len(unique)} among {len(self.dataset)}; ask for smaller splits"
            )
        entries = list(unique.values())
        self.splits = Splits(
            heldout=entries[:heldout],
            warmup=entries[heldout : heldout + warmup],
            rl=entries[heldout + warmup :],
        )

    def score(self, completion: str, entry: Entry) -> float:
        """The dataset's own verdict in [0, 1]; 1.0 is a correct answer."""
        text = completion.strip()
        if self.name == "countdown" and not is_arithmetic(text):
            text = ""  # scored like any other nonsense, but evaluated by nobody
        return float(self.dataset.score_answer(text, entry))


def _problem(entry: Entry) -> Any:
    """What two entries share that ask the same: of countdown, whatever the words and the order."""
    about = entry["metadata"]
    if about.get("source_dataset") == "countdown":
        return tuple(sorted(about["numbers"])), about["target"]
    return entry["question"]


def with_hedges(entries: list[Entry], fraction: float, *, seed: int) -> list[Entry]:
    """The entries with `fraction` of the answers followed by a second thought: "12 or 15".

    Found text rarely stops after the answer, and the verifier wants the answer alone.
    """
    draw = random.Random(seed)
    others = [entry["answer"] for entry in entries]
    return [
        entry | {"answer": f"{entry['answer']} or {draw.choice(others)}"}
        if draw.random() < fraction
        else entry
        for entry in entries
    ]


def with_slips(entries: list[Entry], fraction: float, *, seed: int) -> list[Entry]:
    """The entries with a slip of the pen in `fraction` of the answers: one letter is another."""
    draw = random.Random(seed)

    def slip(answer: str) -> str:
        at = draw.randrange(len(answer))
        others = [letter for letter in string.ascii_lowercase if letter != answer[at]]
        return answer[:at] + draw.choice(others) + answer[at + 1 :]

    return [
        entry | {"answer": slip(entry["answer"])} if draw.random() < fraction else entry
        for entry in entries
    ]


def prompt(entry: Entry) -> str:
    """The question as the model reads it; the answer follows without a space."""
    return entry["question"] + " "
