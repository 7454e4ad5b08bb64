"""What a model answers to held-out questions, and from whose information."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from facts import Question
from grpo import REWARD
from memory import Words
from rollout import roll_out

from logpi.rewards.information import RealSearch
from logpi.rewards.self_search import blocks


def evaluate(
    model: Any,
    words: Words,
    questions: Sequence[Question],
    engine: RealSearch,
    passages: frozenset[str],
    *,
    information: str,
    max_new_tokens: int,
    greedy: bool = True,
) -> dict[str, float]:
    """Greedy answers, or such at temperature 1, with information from where `roll_out` is told.

    Returns:
        em, f1, format, searches: means of the reward's parts.
        asked: queries that the index answered, a question.
        untrue: blocks of information that are no passage, a question.
    """
    rollouts = roll_out(
        model,
        words,
        [question.text for question in questions],
        max_new_tokens=max_new_tokens,
        information=information,
        engine=None if information == "memory" else engine,
        greedy=greedy,
    )
    found = REWARD.details(rollouts.texts, answer=[question.answer for question in questions])
    untrue = sum(
        name == "information" and body.strip() not in passages
        for text in rollouts.texts
        for name, body in blocks(text) or ()
    )
    return {
        **found.metrics,
        "asked": sum(rollouts.asked) / len(questions),
        "untrue": untrue / len(questions),
    }
