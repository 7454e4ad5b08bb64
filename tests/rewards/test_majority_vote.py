"""TTRL's reward: its vectors, its original's defects, and what must not change a reward."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # `benchmarks` is not installed

from benchmarks import reward_originals as originals

from logpi.rewards import Details, MajorityVote, boxed_answer

WITHOUT = {"symbolic_seconds": 0}  # numbers and words need no process


def _boxed(*answers: object) -> list[str]:
    return [f"so \\boxed{{{answer}}}" for answer in answers]


def _one_group(texts: Sequence[str], labels: Any = None, **settings: Any) -> Details:
    reward = MajorityVote(group_size=len(texts), **(WITHOUT | settings))
    columns = {} if labels is None else {"answer": [labels] * len(texts)}
    return reward.details(texts, **columns)


# ---- the original's vectors ---------------------------------------------------------------------


def test_vector_equivalent_answers() -> None:
    """The original: rewards 1 1 1 1 0 and a majority ratio of 0.4. Ours counts what it grades."""
    texts = _boxed("0.5", r"\frac12", "1/2", "0.5", "3")
    theirs, label, ratio = originals.ttrl_rewards(texts)
    assert (theirs, label, ratio) == ([1, 1, 1, 1, 0], "0.5", 0.4)
    ours = _one_group(texts)
    assert ours.rewards == theirs
    assert ours.metrics["majority_ratio"] == 0.8


def test_vector_tie() -> None:
    texts = _boxed(7, 8, 8, 7)
    assert originals.ttrl_rewards(texts)[1] == "7"
    found = _one_group(texts)
    assert found.rewards == [1, 0, 0, 1]
    assert found.metrics["tied"] == 1


# ---- the original's defects ---------------------------------------------------------------------


def test_defect_an_empty_majority_is_rewarded() -> None:
    texts = ["no idea", "cannot say", "hm", *_boxed(4, 4)]
    assert originals.ttrl_rewards(texts)[0] == [1, 1, 1, 0, 0]
    found = _one_group(texts)
    assert found.rewards == [0, 0, 0, 1, 1]
    assert found.metrics["majority_ratio"] == 0.4
    assert found.metrics["answered"] == 0.4


def test_defect_votes_by_string_grades_by_equivalence() -> None:
    """3 is less frequent than the half, and wins by string."""
    texts = _boxed("0.5", r"\frac12", r"\frac{2}{4}", "3", "3")
    assert originals.ttrl_rewards(texts)[1] == "3"
    assert _one_group(texts).rewards == [1, 1, 1, 0, 0]


def test_defect_a_group_without_answers_fails() -> None:
    """The original's count of nothing raises IndexError where extraction gives None."""
    found = _one_group(["no", "idea"], labels="3")
    assert found.rewards == [0, 0]
    assert found.metrics["majority_ratio"] == found.metrics["label_accuracy"] == 0


@pytest.mark.parametrize("answer", ["Monday", "(1, 2)"])
def test_defect_labels_in_words_or_tuples_are_never_accurate(answer: str) -> None:
    """The original extracts an answer from the bare label, which holds no box: "" or a number."""
    assert originals.ttrl_extract(answer) != answer.replace(" ", "")
    assert _one_group(_boxed(answer, answer, 3), labels=answer).metrics["label_accuracy"] == 1


def test_defect_a_reward_is_written_where_the_last_of_the_group_ends() -> None:
    """Ours is a number a completion, at its own place, however the groups are mixed."""
    texts = _boxed(1, 5, 1, 5, 2, 6)
    mixed = MajorityVote(**WITHOUT)(texts, prompts=["p", "q"] * 3)
    assert mixed == [1, 1, 1, 1, 0, 0]


def test_defect_fractions_that_are_not_reduced_are_wrong() -> None:
    texts = _boxed(r"\frac{1}{2}", r"\frac{1}{2}", r"\frac{2}{4}")
    assert originals.ttrl_rewards(texts)[0] == [1, 1, 0]
    assert _one_group(texts).rewards == [1, 1, 1]


# ---- votes, samples, ties -----------------------------------------------------------------------


def test_votes_are_the_first_of_a_group() -> None:
    texts = _boxed(1, 1, 2, 2, 2)
    assert _one_group(texts).rewards == [0, 0, 1, 1, 1]
    found = _one_group(texts, num_votes=3, labels="1")
    assert found.rewards == [1, 1, 0, 0, 0]
    assert found.metrics["majority_ratio"] == pytest.approx(2 / 3)
    assert found.metrics["accuracy"] == pytest.approx(2 / 3)


def test_kept_are_the_first_or_drawn() -> None:
    texts = _boxed(*range(8))
    assert _one_group(texts, num_samples=3).parts["kept"] == [1, 1, 1, 0, 0, 0, 0, 0]
    draws = [_one_group(texts, num_samples=3, keep="seeded", seed=s).parts["kept"] for s in (0, 1)]
    assert draws[0] != draws[1]
    assert sum(draws[0]) == sum(draws[1]) == 3
    assert _one_group(texts, num_samples=3, keep="seeded").parts["kept"] == draws[0]


def test_draws_belong_to_a_prompt_not_to_its_place() -> None:
    reward = MajorityVote(num_samples=2, keep="seeded", tie="seeded", **WITHOUT)
    texts = _boxed(1, 2, 3, 4)
    alone = reward.details(texts, prompts=["p"] * 4)
    behind = reward.details([*_boxed(7, 7, 7), *texts], prompts=["q"] * 3 + ["p"] * 4)
    assert behind.rewards[3:] == alone.rewards
    assert behind.parts["kept"][3:] == alone.parts["kept"]


def test_a_seeded_tie_takes_each_side() -> None:
    winners = {
        tuple(_one_group(_boxed(7, 8, 8, 7), tie="seeded", seed=seed).rewards) for seed in range(20)
    }
    assert winners == {(1, 0, 0, 1), (0, 1, 1, 0)}


def test_ties_of_different_prompts_are_drawn_apart() -> None:
    reward = MajorityVote(tie="seeded", **WITHOUT)
    rewards = reward(_boxed(*[7, 8] * 20), prompts=[f"p{i // 2}" for i in range(40)])
    assert 0 < sum(rewards[::2]) < 20


def test_metrics() -> None:
    texts = [*_boxed(1, 1, 2, 3), "none", *_boxed(2)]
    found = _one_group(texts, labels="2", num_samples=3)
    assert found.rewards == [1, 1, 0, 0, 0, 0]
    assert found.parts["class"] == [0, 0, 1, 2, -1, 1]
    assert found.parts["correct"] == [0, 0, 1, 0, 0, 1]
    assert found.metrics == {
        "majority_ratio": 2 / 6,
        "answered": 5 / 6,
        "tied": 1,
        "symbolic_skipped": 0,
        "label_accuracy": 0,
        "accuracy": 2 / 6,
        "pass@n": 1,
        "reward_accuracy": 0,
        "kept_accuracy": 1 / 3,
        "kept_pass@n": 1,
    }


def test_reward_accuracy_exceeds_label_accuracy() -> None:
    """A wrong label still marks the other wrong answers as wrong."""
    found = _one_group(_boxed(1, 1, 3, 4, 5), labels="9")
    assert found.metrics["label_accuracy"] == 0
    assert found.metrics["reward_accuracy"] == 0.6


answers = st.lists(st.sampled_from(["1", "2", "0.5", r"\frac12", "Monday", ""]), min_size=1)


@given(answers, st.sampled_from(["1", "0.5", "x"]), st.integers(0, 3))
def test_labels_never_change_a_reward(given_answers: list[str], label: str, seed: int) -> None:
    texts = _boxed(*given_answers)
    with_label = _one_group(texts, labels=label, tie="seeded", seed=seed)
    assert with_label.rewards == _one_group(texts, tie="seeded", seed=seed).rewards


@given(answers, st.randoms(use_true_random=False))
def test_order_changes_no_reward_but_in_a_tie(given_answers: list[str], draw: Any) -> None:
    found = _one_group(_boxed(*given_answers))
    order = list(range(len(given_answers)))
    draw.shuffle(order)
    if not found.metrics["tied"]:
        shuffled = _one_group(_boxed(*(given_answers[i] for i in order)))
        assert shuffled.rewards == [found.rewards[i] for i in order]


# ---- groups and settings ------------------------------------------------------------------------


def test_groups_by_prompt_id_or_size() -> None:
    texts = _boxed(1, 1, 2, 3, 3, 2)
    chats = [[{"role": "user", "content": name}] for name in "aaabbb"]
    wanted = [1, 1, 0, 1, 1, 0]
    reward = MajorityVote(**WITHOUT)
    assert reward(texts, prompts=list("aaabbb")) == wanted
    assert reward(texts, prompts=chats) == wanted
    assert reward(texts, prompts=["same"] * 6, group_ids=[4, 4, 4, 9, 9, 9]) == wanted
    assert MajorityVote(group_size=3, **WITHOUT)(texts, prompts=["same"] * 6) == wanted
    assert reward([], prompts=[]) == []


def test_wrong_groups_are_named() -> None:
    with pytest.raises(ValueError, match="group_ids: expected this column, or prompts, or a group"):
        MajorityVote(**WITHOUT)(["x"])
    with pytest.raises(ValueError, match="expected a multiple of group_size 2, got 3"):
        MajorityVote(group_size=2, **WITHOUT)(["x"] * 3)
    with pytest.raises(ValueError, match="num_votes: expected 4 completions a prompt, got 2 for"):
        MajorityVote(num_votes=4, **WITHOUT)(["x"] * 2, prompts=["p"] * 2)
    with pytest.raises(ValueError, match=r"answer\[1\]: expected a label, as others have, got Non"):
        MajorityVote(**WITHOUT)(["x"] * 2, prompts=["p"] * 2, answer=["1", None])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_votes": 0}, "num_votes: expected at least 1, got 0"),
        ({"num_samples": -1}, "num_samples: expected at least 1, got -1"),
        ({"group_size": 0}, "group_size: expected at least 1, got 0"),
        ({"keep": "last"}, "keep: expected 'first' or 'seeded', got 'last'"),
        ({"tie": "none"}, "tie: expected 'first' or 'seeded', got 'none'"),
        ({"symbolic_seconds": -1}, "symbolic_seconds: expected a number of at least 0, got -1"),
    ],
)
def test_wrong_settings_are_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MajorityVote(**(WITHOUT | setting))


def test_math_verify_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logpi.rewards.equivalence.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'logpi\[rewards\]'"):
        MajorityVote()
    MajorityVote(**WITHOUT)


def test_another_extraction() -> None:
    texts = ["3", "3", r"\boxed{4}"]
    assert _one_group(texts).rewards == [1, 1, 0]
    assert _one_group(texts, extract=boxed_answer).rewards == [0, 0, 1]
    assert _one_group(["12", "12 or 15", "12"], extract=str.strip).rewards == [1, 0, 1]


def test_the_same_call_gives_the_same() -> None:
    draw = random.Random(0)
    texts = _boxed(*(draw.choice(["1", "2", "x+1", "1+x"]) for _ in range(32)))
    reward = MajorityVote(group_size=16, num_samples=4, keep="seeded", tie="seeded", **WITHOUT)
    assert reward.details(texts) == reward.details(list(texts))
