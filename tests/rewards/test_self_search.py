"""SSRL's reward: its vectors, its original's defects, and where the two agree."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # `benchmarks` is not installed

from benchmarks import reward_originals as originals

from logpi.rewards import SelfSearch, self_search
from logpi.rewards.self_search import exact_match, f1_score, final_answer, format_score

T = "<think>It is in Paris.</think>"
S = "<search>tower in Paris</search>"
I = "<information>The tower\nwas built by Eiffel.</information>"  # noqa: E741
A = "<answer>The Eiffel Tower!</answer>"
TARGET = ["Eiffel Tower"]


def _score(text: str, **settings: Any) -> float:
    (reward,) = SelfSearch(**settings)([text], answer=[TARGET])
    return reward


# ---- the original's vectors ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "form", "total"),
    [
        (T + A, 0.5, 0.95),
        (T + S + I + T + A, 1, 1),
        (T + S.replace(" in", "\nin") + I + T + A, 0, 0.9),
        ((T + S + I) * 8 + T + A, 0, 0.9),
        ((T + S + I) * 7 + T + A, 1, 1),
        (T + S + I + S + I + A, 0.5 / 3, 0.9 + 0.1 * 0.5 / 3),
        (T + T + T + A, 1 / 3, 0.9 + 0.1 / 3),
        ("The Eiffel Tower", 0, 0),
        (T + "<answer>the Louvre</answer>", 0.5, 0.05),
    ],
)
def test_vectors(text: str, form: float, total: float) -> None:
    assert originals.ssrl_format(text) == pytest.approx(form)
    assert format_score(text) == pytest.approx(form)
    assert originals.ssrl_reward(text, TARGET) == pytest.approx(total)
    assert _score(text) == pytest.approx(total)


blocks = st.lists(st.sampled_from([T, S + I, S, I, A, "<think>\n</think>",
                                   "<search>your query</search>" + I]), max_size=12)  # fmt: skip


@given(blocks, st.sampled_from(["", "\n", "  "]))
def test_form_agrees_with_the_original_on_whole_blocks(parts: list[str], gap: str) -> None:
    """But for a second answer, which it lets pass in the middle."""
    text = gap.join([*parts, A])
    if text.count("<answer>") == 1 and not _stray(parts):
        assert format_score(text) == pytest.approx(originals.ssrl_format(text))


def _stray(parts: list[str]) -> bool:
    """Information that answers no search, one more search without: their counts agree."""
    return parts.count(S) > 0 and parts.count(I) > 0


words = st.lists(st.sampled_from(["the", "a", "Eiffel", "tower", "of", "Paris!", "1889"]),
                 max_size=6).map(" ".join)  # fmt: skip


@given(words, st.lists(words, min_size=1, max_size=3))
def test_outcome_agrees_with_the_original(answer: str, targets: list[str]) -> None:
    em, f1 = originals.ssrl_outcome(f"<answer>{answer}</answer>", targets)
    if originals.squad(answer) and all(map(originals.squad, targets)):
        assert exact_match(answer, targets) == em
        assert f1_score(answer, targets) == pytest.approx(f1)


# ---- the original's defects ---------------------------------------------------------------------


def test_defect_a_comparison_counts_as_a_tag() -> None:
    text = "<think>1 < 2 and 3 > 2</think>" + S + I + T + A
    assert originals.ssrl_format(text) == 0
    assert format_score(text) == 1
    assert format_score(text.replace("1 < 2", "<b>")) == 0  # another tag is still one


def test_defect_text_between_blocks_is_accepted() -> None:
    text = T + "By the way," + S + I + T + A
    assert originals.ssrl_format(text) == 1
    assert format_score(text) == 0


@pytest.mark.parametrize("middle", ["</think>", "</answer></information>", "<think><think>"])
def test_defect_unbalanced_tags_are_accepted(middle: str) -> None:
    text = T + S + I + T + middle + A
    assert originals.ssrl_format(text) > 0
    assert format_score(text) == 0


def test_defect_several_answers_are_accepted() -> None:
    text = T + "<answer>the Louvre</answer>" + S + I + T + A
    assert originals.ssrl_format(text) == 1
    assert format_score(text) == 0


@pytest.mark.parametrize(("answer", "target"), [("a", "The"), ("?", "!"), ("the", "...")])
def test_defect_answers_that_normalise_to_nothing_match(answer: str, target: str) -> None:
    assert originals.ssrl_outcome(f"<answer>{answer}</answer>", [target])[0] == 1
    assert exact_match(answer, [target]) == 0
    assert exact_match(answer, [answer]) == f1_score(answer, [answer]) == 1


def test_defect_unclosed_answers_take_quadratic_time() -> None:
    text = "<answer>" * 3_000
    start = time.perf_counter()
    originals.ssrl_outcome(text, TARGET)
    theirs = time.perf_counter() - start
    start = time.perf_counter()
    assert final_answer(text) is None
    assert time.perf_counter() - start < theirs / 10


# ---- the rest -----------------------------------------------------------------------------------


def test_the_last_answer_counts() -> None:
    assert final_answer("<answer>a</answer> x <answer> b\n</answer>") == "b"
    assert final_answer("<answer>a<answer>b</answer>") == "b"
    assert final_answer("<answer></answer>") == ""
    assert final_answer("</answer><answer>") is None
    assert exact_match("", ["x"]) == f1_score("", ["x"]) == f1_score(None, ["x"]) == 0


def test_f1_as_the_outcome() -> None:
    text = T + "<answer>Eiffel Tower, Paris</answer>"
    assert _score(text, outcome="f1") == pytest.approx(0.9 * 0.8 + 0.05)
    assert _score(text) == pytest.approx(0.05)
    assert _score(text, outcome="f1", format_weight=0) == pytest.approx(0.8)


def test_parts_and_metrics() -> None:
    reward = SelfSearch(target="solution")
    found = reward.details([T + S + I + T + A, "no"], solution=["Eiffel tower", ["x", "y"]])
    assert found.rewards == [1.0, 0.0]
    assert found.parts == {"format": [1, 0], "em": [1, 0], "f1": [1, 0], "searches": [1, 0]}
    assert found.metrics == {"format": 0.5, "em": 0.5, "f1": 0.5, "searches": 0.5}


@pytest.mark.parametrize("target", [None, [], 3, ["x", 3]])
def test_targets_are_texts(target: Any) -> None:
    with pytest.raises(ValueError, match=r"answer\[1\]: expected a text or a list of texts, got"):
        SelfSearch()(["x", "y"], answer=["x", target])


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"format_weight: expected a number in \[0, 1\], got 2"):
        SelfSearch(format_weight=2)
    with pytest.raises(ValueError, match="outcome: expected 'em' or 'f1', got 'exact'"):
        SelfSearch(outcome="exact")
    with pytest.raises(ValueError, match="answer: expected a column of that name, got prompts"):
        SelfSearch()(["x"], prompts=["p"])


def test_the_prompt_shows_the_form_it_asks_for() -> None:
    (message,) = self_search.messages("Who built {it}?")
    assert message["role"] == "user"
    assert message["content"].endswith("Question: Who built {it}?")
    shown = [f"<{tag}>" in message["content"] for tag in self_search.TAGS]
    assert all(shown)
    example = message["content"].partition("<think>")[2].partition("</answer>")[0]
    assert format_score(f"<think>{example}</answer>") == 0.25  # one thought, one search
