"""At least as many texts a second as the originals; the figures are in docs/rewards/."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # `benchmarks` is not installed

from benchmarks import rewards

from logpi.rewards import equivalent

pytest.importorskip("math_verify")


@pytest.mark.slow
def test_no_slower_than_the_originals() -> None:
    assert equivalent("x+1", "1+x", symbolic_seconds=30)
    for name, (_, ours, theirs) in rewards.cases(groups=4, texts=400).items():
        a, b = rewards.best_of(5, ours, theirs)
        assert a < b, name


def test_ours_and_theirs_reward_the_same_texts() -> None:
    """But for what the original takes apart, so that the two do the same work."""
    groups = rewards.votes(groups=2, expressions=0)
    ours = rewards.voted(groups, rewards.MajorityVote(group_size=rewards.VOTES))
    theirs = rewards.original_votes(groups)
    assert ours == theirs
