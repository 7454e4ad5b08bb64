"""The ways of LLM-PEE (arXiv:2503.02628) to deal types to prompts: random, average, level."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

Strategy = Callable[[Sequence[float], int, int], list[list[int]]]


def random_parts(confidences: Sequence[float], count: int, seed: int = 0) -> list[list[int]]:
    """Shuffled, then cut."""
    order = list(range(len(confidences)))
    random.Random(f"{seed}/parts").shuffle(order)
    return _cut(order, count)


def average_parts(confidences: Sequence[float], count: int, seed: int = 0) -> list[list[int]]:
    """As equal a mass of confidence in each part as the largest ones allow.

    From the most confident on, each goes to the part with the least mass that has room: sizes
    differ by one at most.
    """
    sizes = [len(part) for part in _cut(list(range(len(confidences))), count)]
    parts: list[list[int]] = [[] for _ in sizes]
    mass = [0.0] * len(sizes)
    for one in _by_confidence(confidences):
        room = [i for i, size in enumerate(sizes) if len(parts[i]) < size]
        least = min(room, key=lambda i: (mass[i], i))
        parts[least].append(one)
        mass[least] += confidences[one]
    return parts


def level_parts(confidences: Sequence[float], count: int, seed: int = 0) -> list[list[int]]:
    """Sorted by confidence, then cut: the first part holds the most likely."""
    return _cut(_by_confidence(confidences), count)


STRATEGIES: dict[str, Strategy] = {
    "random": random_parts,
    "average": average_parts,
    "level": level_parts,
}


def _by_confidence(confidences: Sequence[float]) -> list[int]:
    return sorted(range(len(confidences)), key=lambda i: -confidences[i])


def _cut(order: list[int], count: int) -> list[list[int]]:
    """Consecutive parts whose sizes differ by one at most; fewer than `count` of fewer elements."""
    if count < 1:
        raise ValueError(f"count: expected at least 1 part, got {count}")
    count = min(count, len(order))
    ends = [len(order) * i // count for i in range(1, count + 1)]
    return [order[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
