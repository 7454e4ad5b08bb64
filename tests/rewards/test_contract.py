"""The contract of every reward, on one that counts characters."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from logpi.rewards import contract
from logpi.rewards.contract import Details, Reward


@dataclass(frozen=True)
class TextLength(Reward):
    """Characters, at most `limit`."""

    limit: int = 100

    def __post_init__(self) -> None:
        contract.check_count("limit", self.limit)

    def _details(self, texts: list[str], columns: Mapping[str, Any]) -> Details:
        rewards = [float(min(len(text), self.limit)) for text in texts]
        return Details(rewards, {"length": rewards}, {"mean": contract.mean(rewards)})


CHAT = [
    {"role": "assistant", "content": "ab"},
    {"role": "tool", "content": "never counted"},
    {"role": "assistant", "content": None, "tool_calls": []},
    {"role": "assistant", "content": [{"type": "text", "text": "c"}, {"type": "image"}]},
]


def test_texts_and_chats_are_read() -> None:
    assert contract.texts_of(["", "abc", CHAT, [{"content": "x"}], []]) == [
        "", "abc", "ab\n\nc", "x", "",
    ]  # fmt: skip


def test_a_call_is_what_a_trainer_makes() -> None:
    logged = {}
    rewards = TextLength(limit=3)(
        prompts=["p", "q"],
        completions=["ab", CHAT],
        completion_ids=[[1], [2]],
        trainer_state=object(),
        environments=None,
        log_extra=lambda name, values: None,
        log_metric=logged.__setitem__,
    )
    assert rewards == [2.0, 3.0]
    assert logged == {"text_length/mean": 2.5}
    assert TextLength().__name__ == "text_length"
    assert TextLength.__name__ == "TextLength"
    assert TextLength()([]) == []


def test_a_reward_is_a_value() -> None:
    reward = TextLength(limit=3)
    assert pickle.loads(pickle.dumps(reward)) == reward
    assert hash(reward) == hash(TextLength(limit=3))
    with pytest.raises(TypeError, match="limits"):
        TextLength(limits=3)


@pytest.mark.parametrize("completions", ["text", b"text", None, 3, {"content": "x"}])
def test_completions_are_a_list(completions: Any) -> None:
    with pytest.raises(TypeError, match=r"completions: expected a list .*, got"):
        TextLength()(completions)


@pytest.mark.parametrize("one", [None, 3, b"x", ["text"], {"content": "x"}])
def test_a_completion_is_a_text_or_a_chat(one: Any) -> None:
    with pytest.raises(TypeError, match=r"completions\[1\]: expected a text or chat messages, got"):
        TextLength()(["x", one])


def test_a_column_has_a_value_for_each_completion() -> None:
    assert contract.column({"answer": (1, 2)}, "answer", 2) == [1, 2]
    assert contract.optional_column({"answer": None}, "answer", 2) is None
    with pytest.raises(ValueError, match="answer: expected a column of that name, got id, x"):
        contract.column({"x": [1], "id": [2]}, "answer", 1)
    with pytest.raises(ValueError, match="answer: expected 2 values, one a completion, got 1"):
        contract.column({"answer": [1]}, "answer", 2)
    with pytest.raises(TypeError, match="answer: expected a list, got str"):
        contract.column({"answer": "42"}, "answer", 2)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="limit: expected at least 1, got 0"):
        TextLength(limit=0)
    with pytest.raises(TypeError, match="limit: expected an int, got bool"):
        TextLength(limit=True)
    contract.check_number("weight", 0.5, 0, 1)
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"weight: expected a number in \[0, 1\], got"):
            contract.check_number("weight", value, 0, 1)
    with pytest.raises(ValueError, match="weight: expected a number of at least 2, got 1"):
        contract.check_number("weight", 1, 2)
    with pytest.raises(TypeError, match="weight: expected a number, got str"):
        contract.check_number("weight", "1")
    with pytest.raises(ValueError, match="tie: expected 'first' or 'seeded', got 'last'"):
        contract.check_choice("tie", "last", "first", "seeded")
