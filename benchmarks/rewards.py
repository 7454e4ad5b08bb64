"""Rewards beside the originals' algorithms, on the same texts: `python benchmarks/rewards.py`.

Wall-clock seconds, alternating, the best of several rounds, with every cache emptied before each.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's own folder is first

from benchmarks import reward_originals as originals
from logpi.rewards import MajorityVote, SelfSearch, _symbolic, equivalent, normal_form

VOTES = 64
SENTENCE = "the tower in Paris was built by Gustave Eiffel for a fair of 1889 and it stays"
WORDS = SENTENCE.split()


def votes(groups: int, expressions: float, seed: int = 0) -> list[list[str]]:
    """Groups of completions with a most frequent answer in several spellings, and wrong ones."""
    draw = random.Random(seed)
    found = []
    for _ in range(groups):
        a, b = draw.randint(2, 60), draw.randint(2, 60)
        if draw.random() < expressions:
            right = [f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{b}}}\\cdot {a}", f"{a} \\sqrt{{{b}}}"]
            wrong = [f"{a}\\sqrt{{{b + 1}}}", f"{a + b}"]
        else:
            right = [f"\\frac{{{a}}}{{{b}}}", f"{a}/{b}", f"\\dfrac{{{a}}}{{{b}}}"]
            wrong = [str(a + i) for i in range(4)]
        found.append(
            [
                f"{_prose(draw, 200)} so it is $\\boxed{{{draw.choice(right * 2 + wrong)}}}$."
                for _ in range(VOTES)
            ]
        )
    return found


def searches(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        turns = "".join(
            f"<think>{_prose(draw, 60)}</think>\n<search>{_prose(draw, 8)}</search>\n"
            f"<information>{_prose(draw, 150)}</information>\n"
            for _ in range(draw.randint(0, 3))
        )
        end = f"<think>{_prose(draw, 40)}</think>\n<answer>{_prose(draw, 2)}</answer>"
        found.append(turns + end)
    return found


def _prose(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(WORDS, k=words))


def voted(groups: list[list[str]], reward: MajorityVote) -> list[list[float]]:
    return [reward(texts) for texts in groups]


def original_votes(groups: list[list[str]]) -> list[list[float]]:
    return [originals.ttrl_rewards(texts)[0] for texts in groups]


def best_of(rounds: int, *calls: Callable[[], object]) -> list[float]:
    """The shortest seconds of each call, alternating."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            normal_form.cache_clear()
            _symbolic._known.clear()
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def cases(
    groups: int, texts: int
) -> dict[str, tuple[int, Callable[[], object], Callable[[], object]]]:
    """name -> (texts, ours, the original's)."""
    vote, search, targets = MajorityVote(group_size=VOTES), SelfSearch(), ["Gustave Eiffel", "fair"]
    numbers, mixed, found = votes(groups, 0), votes(groups, 0.25), searches(texts)
    return {
        "majority_vote, numbers": (
            groups * VOTES,
            lambda: voted(numbers, vote),
            lambda: original_votes(numbers),
        ),
        "majority_vote, a quarter expressions": (
            groups * VOTES,
            lambda: voted(mixed, vote),
            lambda: original_votes(mixed),
        ),
        "self_search": (
            texts,
            lambda: search(found, answer=[targets] * texts),
            lambda: [originals.ssrl_reward(text, targets) for text in found],
        ),
    }


def main() -> None:
    equivalent("x+1", "1+x", symbolic_seconds=30)  # its process runs
    print(f"{'texts a second':<40}{'logpi':>10}{'original':>10}{'ratio':>8}")
    for name, (count, ours, theirs) in cases(groups=16, texts=2_000).items():
        a, b = best_of(5, ours, theirs)
        print(f"{name:<40}{count / a:>10.0f}{count / b:>10.0f}{b / a:>7.1f}x")


if __name__ == "__main__":
    main()
