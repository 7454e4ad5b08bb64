"""Labels without people, as LLM-PEE makes them: several annotators, votes, multiple choice."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from statsmodels.stats.inter_rater import aggregate_raters, cohens_kappa, fleiss_kappa, to_table

NONE_OF_THE_ABOVE = "none of the above"
Q = TypeVar("Q")  # a question
# (question, options, round) -> one of the options. The round lets an annotator think again.
Annotator = Callable[[Q, Sequence[str], int], str]


class Verdict(NamedTuple):
    """`answer` is None where the last round was a tie too."""

    answer: str | None
    rounds: int
    first: tuple[str, ...]  # each annotator's answer, before any second thought


@dataclass(frozen=True)
class Vote(Generic[Q]):
    """The most frequent answer; on a tie all are asked again, with the tied answers to choose from.

    Attributes:
        annotators: at least one.
        max_rounds: of asking, the first included.
    """

    annotators: Sequence[Annotator[Q]]
    max_rounds: int = 3

    def __post_init__(self) -> None:
        if not self.annotators:
            raise ValueError("annotators: expected at least one, got none")
        if self.max_rounds < 1:
            raise ValueError(f"max_rounds: expected at least 1, got {self.max_rounds}")

    def __call__(self, question: Q, options: Sequence[str]) -> Verdict:
        left, first = list(options), ()
        for number in range(1, self.max_rounds + 1):
            answers = tuple(one(question, left, number) for one in self.annotators)
            for answer in answers:
                if answer not in left:
                    raise ValueError(f"answer: expected one of {left}, got {answer!r}")
            first = first or answers
            counts = Counter(answers)
            most = max(counts.values())
            tied = [option for option in left if counts[option] == most]
            if len(tied) == 1:
                return Verdict(tied[0], number, first)
            left = tied
        return Verdict(None, self.max_rounds, first)


def simulated(truth: Callable[[Any], str], accuracy: float, *, bias: str = "",
              bias_share: float = 0.5, seed: Hashable = 0) -> Annotator[Any]:  # fmt: skip
    """An annotator that is right with probability `accuracy`; wrong, it says `bias` as often as
    `bias_share` where that is an option, and else any other. Independent errors: kinder than life.
    """

    def answer(question: Any, options: Sequence[str], number: int) -> str:
        draw = random.Random(f"{seed}/{question}/{number}")
        right = truth(question)
        if right in options and (draw.random() < accuracy or len(options) == 1):
            return right
        wrong = [option for option in options if option != right]
        if bias in wrong and draw.random() < bias_share:
            return bias
        return draw.choice(wrong)

    return answer


def by_scores(scores: Callable[[Any, Sequence[str]], Sequence[float]], *, temperature: float = 0.5,
              seed: Hashable = 0) -> Annotator[Any]:  # fmt: skip
    """An annotator that draws from the softmax of its scores, log-probs of the options, / T."""

    def answer(question: Any, options: Sequence[str], number: int) -> str:
        found = scores(question, options)
        highest = max(found)
        weights = [math.exp((one - highest) / temperature) for one in found]
        draw = random.Random(f"{seed}/{question}/{number}")
        return draw.choices(list(options), weights)[0]

    return answer


class Agreement(NamedTuple):
    """Of the first answers: Fleiss' kappa of all annotators, Cohen's of each pair, and how often
    all say the same."""

    fleiss: float
    cohen: dict[tuple[int, int], float]
    unanimous: float


def agreement(verdicts: Sequence[Verdict]) -> Agreement:
    """Statistics by statsmodels. Where nobody ever disagrees, kappa is 1."""
    answers = np.array([verdict.first for verdict in verdicts])
    codes = np.unique(answers, return_inverse=True)[1].reshape(answers.shape)
    if codes.max() == 0:
        pairs = dict.fromkeys(combinations(range(answers.shape[1]), 2), 1.0)
        return Agreement(1.0, pairs, 1.0)
    cohen = {}
    for a, b in combinations(range(answers.shape[1]), 2):
        table = to_table(codes[:, [a, b]], bins=np.arange(codes.max() + 2) - 0.5)[0]
        same = (codes[:, a] == codes[:, b]).all()
        cohen[a, b] = 1.0 if same else float(cohens_kappa(table, return_results=False))
    fleiss = float(fleiss_kappa(aggregate_raters(codes)[0]))
    return Agreement(fleiss, cohen, float((codes == codes[:, :1]).all(1).mean()))
