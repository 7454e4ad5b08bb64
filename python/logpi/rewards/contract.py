"""What every reward is: completions and columns in, one number a completion out.

A reward is a frozen dataclass. Its fields are its settings, checked when it is made: a call gets
whatever columns the data set has and ignores those it does not know, so a setting that came with
the call and was misspelled would be ignored, too.

    reward = SelfSearch(outcome="f1")
    reward(completions, answer=answers)          -> list[float]       what a trainer calls
    reward.details(completions, answer=answers)  -> Details           the same with its parts

Every reward is deterministic (draws come from a seed among its settings), never raises on a text,
whatever the text, and spends a bounded time and memory a completion. It loads no torch. What it
raises is of the caller: a setting or a column that is wrong, with its name.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Completion = str | Sequence[Mapping[str, Any]]  # a text, or the messages of a chat


class Details(NamedTuple):
    """What a reward found.

    Attributes:
        rewards: one a completion.
        parts: by name, what a reward is made of; one number a completion.
        metrics: by name, what there is to know of the batch.
    """

    rewards: list[float]
    parts: dict[str, list[float]]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Reward(ABC):
    """Base of all rewards: subclasses are frozen dataclasses that define `_details`."""

    @property
    def __name__(self) -> str:
        """What a trainer logs the reward under: the class in snake case."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", str(type(self).__name__)).lower()

    def __call__(self, completions: Sequence[Completion], **columns: Any) -> list[float]:
        """One float a completion.

        Args:
            completions: texts, or lists of chat messages.
            columns: lists of the batch's length by name. Those that the reward does not know are
                ignored, and so is all else that trainers hand over, but for `log_metric`: if it is
                there, it is called with the name and the value of each metric.
        """
        found = self.details(completions, **columns)
        log_metric = columns.get("log_metric")
        if callable(log_metric):
            for name, value in found.metrics.items():
                log_metric(f"{self.__name__}/{name}", value)
        return found.rewards

    def details(self, completions: Sequence[Completion], **columns: Any) -> Details:
        """The same rewards with their parts and the batch's metrics."""
        return self._details(texts_of(completions), columns)

    @abstractmethod
    def _details(self, texts: list[str], columns: Mapping[str, Any]) -> Details: ...


# ---- what comes in ------------------------------------------------------------------------------


def texts_of(completions: Sequence[Completion]) -> list[str]:
    """The text of each completion; of a chat, what the assistant said, one message a line.

    A message without content (a call of a tool) is empty, and so is any part of one that is no
    text. Messages without a role count as the assistant's.
    """
    if isinstance(completions, (str, bytes)) or not isinstance(completions, Sequence):
        raise TypeError(
            f"completions: expected a list of texts or of chats, got {type(completions).__name__}"
        )
    return [_text(f"completions[{i}]", one) for i, one in enumerate(completions)]


def _text(name: str, completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Sequence) and all(isinstance(part, Mapping) for part in completion):
        said = (m.get("content") for m in completion if m.get("role", "assistant") == "assistant")
        return "\n".join(_content(content) for content in said)
    raise TypeError(f"{name}: expected a text or chat messages, got {type(completion).__name__}")


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):  # parts: text between images
        found = (part.get("text") for part in content if isinstance(part, Mapping))
        return "".join(text for text in found if isinstance(text, str))
    return ""


def column(columns: Mapping[str, Any], name: str, size: int) -> list[Any]:
    """The column of that name, which has to be there, with one value a completion."""
    found = optional_column(columns, name, size)
    if found is None:
        there = ", ".join(sorted(columns)) or "none"
        raise ValueError(f"{name}: expected a column of that name, got {there}")
    return found


def optional_column(columns: Mapping[str, Any], name: str, size: int) -> list[Any] | None:
    """The same, or None if it is not there (or None itself)."""
    found = columns.get(name)
    if found is None:
        return None
    if isinstance(found, (str, bytes, Mapping)) or not hasattr(found, "__len__"):
        raise TypeError(f"{name}: expected a list, got {type(found).__name__}")
    if len(found) != size:
        raise ValueError(f"{name}: expected {size} values, one a completion, got {len(found)}")
    return list(found)


# ---- settings -----------------------------------------------------------------------------------


def check_number(name: str, value: float, least: float = -math.inf, most: float = math.inf) -> None:
    """A finite number between two bounds, both legal."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not (math.isfinite(value) and least <= value <= most):
        raise ValueError(f"{name}: expected a number {_between(least, most)}, got {value}")


def check_count(name: str, value: int, least: int = 1) -> None:
    """An int of at least so much."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def check_choice(name: str, value: str, *choices: str) -> None:
    """One of some words."""
    if value not in choices:
        listed = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: expected {listed}, got {value!r}")


def _between(least: float, most: float) -> str:
    if math.isinf(most):
        return f"of at least {least:g}" if math.isfinite(least) else "that is finite"
    return f"in [{least:g}, {most:g}]"


def mean(values: Sequence[float]) -> float:
    """0.0 of nothing."""
    return math.fsum(values) / len(values) if values else 0.0
