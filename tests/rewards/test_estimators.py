"""pass@k and maj@k against every subset, and intervals against scipy's and against the truth."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logpi.rewards import estimators, maj_at_k, pass_at_k

pytest.importorskip("scipy")


@given(st.integers(1, 9), st.data())
def test_pass_at_k_is_the_mean_over_subsets(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    tries = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, [c], k).value == pytest.approx(sum(map(any, tries)) / len(tries))


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=1, max_size=9), st.data())
def test_maj_at_k_is_the_mean_over_subsets(answers: list[str | None], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(answers)))
    subsets = list(itertools.combinations(answers, k))
    wanted = sum(_wins(subset, "a") for subset in subsets) / len(subsets)
    assert maj_at_k([answers], ["a"], k).value == pytest.approx(wanted, abs=1e-12)


def _wins(votes: Sequence[str | None], right: str) -> float:
    counts = Counter(vote for vote in votes if vote is not None)
    most = max(counts.values(), default=0)
    leaders = [one for one, count in counts.items() if count == most]
    return (right in leaders) / max(len(leaders), 1)


def test_large_counts() -> None:
    assert pass_at_k(100_000, [3], 1_000).value == pytest.approx(0.029701, abs=1e-6)
    assert pass_at_k(200, [150], 100).value == 1.0
    answers = ["a"] * 300 + [str(i % 20) for i in range(300)]
    assert maj_at_k([answers], ["a"], 32).value == pytest.approx(1, abs=1e-4)
    assert maj_at_k([answers], ["0"], 32).value == pytest.approx(0, abs=1e-4)


def test_the_biased_estimator_is_not_ours() -> None:
    """1 - (1 - c/n)^k is too low: of c = 1 among n = 2, both draws find it."""
    assert pass_at_k(2, [1], 2).value == 1
    assert 1 - (1 - 1 / 2) ** 2 == 0.75


def test_the_mean_is_over_problems() -> None:
    found = pass_at_k([4, 10], [1, 5], 1)
    assert found.per_problem == pytest.approx([0.25, 0.5])
    assert found.value == pytest.approx(0.375)
    assert found.interval == pytest.approx((0.25, 0.5))
    assert maj_at_k([["x", "y"], [None, None]], ["x", "x"], 1).per_problem == [0.5, 0]


def test_one_problem_has_an_exact_interval() -> None:
    stats = pytest.importorskip("scipy.stats")
    found = pass_at_k(20, [3], 5, confidence=0.9)
    exact = stats.binomtest(3, 20).proportion_ci(0.9, method="exact")
    assert found.interval == pytest.approx((1 - (1 - exact.low) ** 5, 1 - (1 - exact.high) ** 5))
    assert pass_at_k(20, [0], 5).interval[0] == 0
    assert pass_at_k(20, [20], 5).interval[1] == 1
    assert maj_at_k([["a", "b"]], ["a"], 1).interval == (0, 1)


def test_the_bootstrap_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    numpy = pytest.importorskip("numpy")
    values = [random.Random(i).random() for i in range(40)]
    theirs = stats.bootstrap(
        (values,), numpy.mean, method="percentile", n_resamples=4000, random_state=0
    ).confidence_interval
    assert estimators.bootstrap(values, resamples=4000) == pytest.approx(tuple(theirs), abs=0.01)


def test_intervals_cover_as_often_as_they_say() -> None:
    """60 problems of known pass@2; 300 experiments. 95 % may fall to 91 % by chance (3 sigma)."""
    draw = random.Random(0)
    covered = 0
    for _ in range(300):
        rates = [draw.betavariate(1, 2) for _ in range(60)]
        correct = [sum(draw.random() < p for _ in range(8)) for p in rates]
        low, high = pass_at_k(8, correct, 2, resamples=200).interval
        covered += low <= 0.5 <= high  # 1 - E(1 - p)^2 for Beta(1, 2): 1 - 1/2
    assert covered / 300 >= 0.91


def test_the_same_seed_gives_the_same() -> None:
    calls = [pass_at_k(4, [0, 1, 2, 3], 2, seed=seed) for seed in (3, 3, 4)]
    assert calls[0] == calls[1]
    assert calls[0].value == calls[2].value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, [1], 0), "k: expected at least 1, got 0"),
        ((4, [1], 5), r"num_samples\[0\]: expected at least 5, got 4"),
        ((4, [5], 2), r"num_correct\[0\]: expected at most 4, got 5"),
        ((4, [-1], 2), r"num_correct\[0\]: expected at least 0, got -1"),
        ((4, [], 2), "num_samples: expected one for each of 0 problems, at least one"),
        (([4, 4], [1], 2), "num_samples: expected one for each of 1 problems, at least one"),
    ],
)
def test_wrong_counts_are_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pass_at_k(*arguments)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="confidence: expected a number between 0 and 1, got 1"):
        pass_at_k(4, [1, 2], 2, confidence=1)
    with pytest.raises(ValueError, match="resamples: expected at least 100, got 10"):
        pass_at_k(4, [1, 2], 2, resamples=10)
    with pytest.raises(ValueError, match=r"len\(answers\[0\]\): expected at least 3, got 2"):
        maj_at_k([["a", "b"]], ["a"], 3)
    with pytest.raises(ValueError, match="correct: expected one for each of 1 problems"):
        maj_at_k([["a"]], [], 1)
    assert math.isclose(estimators.clopper_pearson(0, 10)[1], 1 - 0.025**0.1)
