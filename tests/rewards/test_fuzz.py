"""No text raises, and none takes long. A small share of the texts here; all of them in `slow`.

Seconds are of CPU time: what else a machine does is none of a reward's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from texts import large_texts, random_texts

from logpi.rewards import (
    EventExtraction,
    MajorityVote,
    Reward,
    SelfSearch,
    equivalent,
    information_mask,
    parse_events,
)
from logpi.rewards.information import RealSearch, query_spans

GROUP = 8


def _vote(symbolic_seconds: float) -> Callable[[list[str]], list[float]]:
    reward = MajorityVote(symbolic_seconds=symbolic_seconds)
    return lambda texts: reward(texts, prompts=["p"] * len(texts), answer=texts)


def _search(texts: list[str]) -> list[float]:
    return SelfSearch()(texts, answer=[[text, "x"] for text in texts])


def _extraction(texts: list[str]) -> list[float]:
    return EventExtraction()(texts, events=[parse_events(text) or [] for text in texts])


REWARDS = {
    "majority_vote": _vote(symbolic_seconds=0),
    "self_search": _search,
    "event_extraction": _extraction,
}


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("count", [4_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_random_texts(name: str, count: int) -> None:
    texts = list(random_texts(count, seed=0))
    worst = 0.0
    for start in range(0, count, GROUP):
        before = time.process_time()
        rewards = REWARDS[name](texts[start : start + GROUP])
        worst = max(worst, time.process_time() - before)
        assert len(rewards) == GROUP
        assert all(0 <= reward <= 1 for reward in rewards)
    assert worst < 1


@pytest.mark.parametrize("count", [160, pytest.param(1_600, marks=pytest.mark.slow)])
def test_random_expressions(count: int) -> None:
    """The same with math-verify behind: the clock is its process's CPU time, and ours."""
    pytest.importorskip("math_verify")
    assert equivalent("x+1", "1+x", symbolic_seconds=30)  # it runs
    vote = _vote(symbolic_seconds=0.1)
    texts = list(random_texts(count, seed=1))
    for start in range(0, count, GROUP):
        rewards = vote(texts[start : start + GROUP])
        assert all(reward in (0, 1) for reward in rewards)


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("size", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_large_texts(name: str, size: int) -> None:
    for shape, text in large_texts(size).items():
        before = time.process_time()
        rewards = REWARDS[name]([text, text])
        seconds = time.process_time() - before
        assert all(math.isfinite(reward) for reward in rewards), shape
        assert seconds < 1, (shape, seconds)


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_text(texts: list[str]) -> None:
    for reward in (MajorityVote(group_size=1, symbolic_seconds=0), SelfSearch()):
        assert isinstance(reward, Reward)
        assert len(reward(texts, answer=texts)) == len(texts)
    assert len(_extraction(texts)) == len(texts)
    assert len(information_mask(texts)) == len(texts)
    text = "".join(texts)
    grounded = RealSearch(lambda query, top_k: [query] * top_k).ground(text)
    assert len(grounded.asked) == len(query_spans(text))
