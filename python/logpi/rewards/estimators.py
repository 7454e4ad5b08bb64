"""pass@k and maj@k from more samples than k, with intervals; docs/rewards/estimators.md."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from logpi.rewards import contract


class Estimate(NamedTuple):
    """An estimate over problems.

    Attributes:
        value: the mean over problems.
        interval: (low, high) at the confidence asked for.
        per_problem: each problem's own, unbiased.
    """

    value: float
    interval: tuple[float, float]
    per_problem: list[float]


def pass_at_k(
    num_samples: int | Sequence[int],
    num_correct: Sequence[int],
    k: int,
    *,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Estimate:
    """The chance that at least one of k samples is correct: 1 - C(n - c, k) / C(n, k), unbiased
    (Chen et al. 2021, arXiv:2107.03374).

    Args:
        num_samples: n of each problem, or one for all; at least k.
        num_correct: c of each problem.
        k: samples of a try.
        confidence: of the interval. Of several problems it is a percentile bootstrap over them; of
            a single one it is exact, by Clopper and Pearson (needs scipy), for its own pass@k.
        resamples, seed: of the bootstrap.
    """
    contract.check_count("k", k)
    correct = list(num_correct)
    samples = [num_samples] * len(correct) if isinstance(num_samples, int) else list(num_samples)
    if not correct or len(samples) != len(correct):
        raise ValueError(
            f"num_samples: expected one for each of {len(correct)} problems, at least one problem, "
            f"got {len(samples)}"
        )
    for i, (n, c) in enumerate(zip(samples, correct, strict=True)):
        contract.check_count(f"num_samples[{i}]", n, k)
        contract.check_count(f"num_correct[{i}]", c, 0)
        if c > n:
            raise ValueError(f"num_correct[{i}]: expected at most {n}, got {c}")
    found = [_pass_at_k(n, c, k) for n, c in zip(samples, correct, strict=True)]
    _check(confidence, resamples)
    if len(found) == 1:
        low, high = clopper_pearson(correct[0], samples[0], confidence)
        return Estimate(found[0], (_at_least_one(low, k), _at_least_one(high, k)), found)
    return _over_problems(found, confidence, resamples, seed)


def _pass_at_k(n: int, c: int, k: int) -> float:
    if n - c < k:
        return 1.0
    miss = 1.0  # of int / int Python rounds once, but C(n, k) may not fit into a float
    for i in range(n - c + 1, n + 1):
        miss *= 1 - k / i
    return 1 - miss


def _at_least_one(p: float, k: int) -> float:
    return 1.0 if p >= 1 else -math.expm1(k * math.log1p(-p))


def maj_at_k(
    answers: Sequence[Sequence[Hashable | None]],
    correct: Sequence[Hashable],
    k: int,
    *,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Estimate:
    """The chance that the most frequent answer of k samples is the correct one; ties are drawn.

    The mean over all C(n, k) subsets, counted exactly: unbiased, and no subset is sampled.

    Args:
        answers: of each problem, the class of each sample's answer; None for no answer, which
            counts among the k and never wins.
        correct: the right class of each problem.
        k: votes, at most as many as a problem has samples.
        confidence, resamples, seed: of a percentile bootstrap over problems, of which there must be
            two or more: of a single one there is no interval, and it is (0, 1).
    """
    contract.check_count("k", k)
    if not answers or len(answers) != len(correct):
        raise ValueError(
            f"correct: expected one for each of {len(answers)} problems, at least one problem, "
            f"got {len(correct)}"
        )
    _check(confidence, resamples)
    found = []
    for i, (given, right) in enumerate(zip(answers, correct, strict=True)):
        contract.check_count(f"len(answers[{i}])", len(given), k)
        found.append(_maj_at_k(given, right, k))
    if len(found) == 1:
        return Estimate(found[0], (0.0, 1.0), found)
    return _over_problems(found, confidence, resamples, seed)


def _maj_at_k(answers: Sequence[Hashable | None], correct: Hashable, k: int) -> float:
    counts = Counter(one for one in answers if one is not None)
    right = counts.pop(correct, 0)
    silent = len(answers) - right - counts.total()
    total = 0.0
    subsets = math.comb(len(answers), k)
    for most in range(1, min(right, k) + 1):  # votes for the right answer: it wins with so many
        # ways[t][j]: to draw j of the others, t classes with as many votes, none with more
        ways = {0: [math.comb(silent, j) for j in range(k - most + 1)]}
        for count in counts.values():
            ways = _with_class(ways, count, most, k - most)
        for tied, drawn in ways.items():
            total += math.comb(right, most) * drawn[k - most] / subsets / (tied + 1)
    return min(total, 1.0)


def _with_class(
    ways: dict[int, list[int]], count: int, most: int, left: int
) -> dict[int, list[int]]:
    grown: dict[int, list[int]] = {}
    for tied, drawn in ways.items():
        for votes in range(min(count, most, left) + 1):
            into = grown.setdefault(tied + (votes == most), [0] * (left + 1))
            chosen = math.comb(count, votes)
            for j in range(left - votes + 1):
                into[j + votes] += drawn[j] * chosen
    return grown


# ---- intervals ----------------------------------------------------------------------------------


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a binomial's p: it covers at least as often as it says."""
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    high = beta.isf(tail, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


def bootstrap(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval of the mean under draws of whole problems with replacement."""
    draw = random.Random(seed)
    means = sorted(
        math.fsum(draw.choices(values, k=len(values))) / len(values) for _ in range(resamples)
    )
    tail = (1 - confidence) / 2
    last = resamples - 1
    return means[math.floor(tail * last)], means[math.ceil((1 - tail) * last)]


def _over_problems(found: list[float], confidence: float, resamples: int, seed: int) -> Estimate:
    return Estimate(contract.mean(found), bootstrap(found, confidence, resamples, seed), found)


def _check(confidence: float, resamples: int) -> None:
    contract.check_number("confidence", confidence, 0, 1)
    if confidence in (0, 1):
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence}")
    contract.check_count("resamples", resamples, 100)
