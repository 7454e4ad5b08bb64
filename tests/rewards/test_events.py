"""Scores of extracted events: an independent count, what counts as an event, and any JSON."""

from __future__ import annotations

import json
import math
import random
import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from logpi.rewards import Event, EventExtraction, event_scores, parse_events
from logpi.rewards.events import METRICS, Argument
from logpi.rewards.partial_json import complete_values

GOLD = [
    {
        "trigger": "attacked",
        "type": "Conflict:Attack",
        "arguments": [
            {"span": "rebels", "role": "Attacker"},
            {"span": "the convoy", "role": "Target"},
        ],
    },
    {"trigger": "died", "type": "Life:Die", "arguments": [{"span": "a driver", "role": "Victim"}]},
]


# ---- scores -------------------------------------------------------------------------------------


def test_a_vector_by_hand() -> None:
    """One trigger right in span and type, one in span alone, one invented; of three arguments one
    right, one with another role, one at an event of another type and trigger."""
    answer = [
        {"trigger": "attacked", "type": "Conflict:Attack",
         "arguments": [{"span": "rebels", "role": "Attacker"},
                       {"span": "the convoy", "role": "Place"}]},
        {"trigger": "died", "type": "Conflict:Attack",
         "arguments": [{"span": "a driver", "role": "Victim"}]},
        {"trigger": "fled", "type": "Movement", "arguments": []},
    ]  # fmt: skip
    scores = event_scores([json.dumps(answer)], [GOLD])
    assert [score[3:] for score in scores] == [
        (2, 3, 2), (1, 3, 2), (2, 3, 3), (1, 3, 3), (2, 3, 3), (1, 3, 3),
    ]  # fmt: skip
    assert scores.tc[:3] == pytest.approx((1 / 3, 1 / 2, 2 / 5))
    moved = [dict(answer[0], trigger="died")]  # the trigger of another event
    scores = event_scores([moved], [GOLD])
    assert (scores.ai.matched, scores.ac.matched) == (2, 1)
    assert (scores.ai_plus.matched, scores.ac_plus.matched) == (0, 0)


def _drawn(draw: random.Random) -> list[dict[str, Any]]:
    """Few names, so that events agree in part, and are repeated."""
    return [
        {
            "trigger": draw.choice("abc"),
            "type": draw.choice("XY"),
            "arguments": [
                {"span": draw.choice("pqr"), "role": draw.choice("mn")}
                for _ in range(draw.randint(0, 3))
            ],
        }
        for _ in range(draw.randint(0, 4))
    ]


def _flat(metric: str, events: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The elements of one metric, in the order of their first."""
    found = []
    for e in events:
        rows = {
            "ti": [(e["trigger"],)],
            "tc": [(e["trigger"], e["type"])],
            "ai": [(e["type"], a["span"]) for a in e["arguments"]],
            "ac": [(e["type"], a["span"], a["role"]) for a in e["arguments"]],
            "ai_plus": [(e["trigger"], e["type"], a["span"]) for a in e["arguments"]],
            "ac_plus": [(e["trigger"], e["type"], *a.values()) for a in e["arguments"]],
        }[metric]
        for row in rows:
            if row not in found:
                found.append(row)
    return found


@pytest.mark.parametrize("seed", range(40))
def test_scores_agree_with_an_independent_count(seed: int) -> None:
    draw = random.Random(seed)
    documents = draw.randint(1, 6)
    found, gold = [[_drawn(draw) for _ in range(documents)] for _ in range(2)]
    texts = [json.dumps(draw.choice((one, {"events": one}))) for one in found]
    reward = EventExtraction(tc_weight=0.5, ai_plus_weight=2)
    weights = {"ti": 0.25, "tc": 0.5, "ai": 0.25, "ac": 0.25, "ai_plus": 2, "ac_plus": 0}
    details = reward.details(texts, events=gold)
    expected = [Fraction(0)] * documents
    for metric, score in event_scores(texts, gold)._asdict().items():
        matched = predicted = right = 0
        for i, (ours, theirs) in enumerate(zip(found, gold, strict=True)):
            a, b = _flat(metric, ours), _flat(metric, theirs)
            both = sum(1 for row in a if row in b)
            f1 = Fraction(2 * both, len(a) + len(b)) if a or b else Fraction(1)
            assert details.parts[metric][i] == pytest.approx(float(f1))
            expected[i] += Fraction(weights[metric]) * f1
            matched, predicted, right = matched + both, predicted + len(a), right + len(b)
        precision = matched / predicted if predicted else float(not right)
        recall = matched / right if right else float(not predicted)
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        assert score == pytest.approx((precision, recall, f1, matched, predicted, right))
        assert details.metrics[metric] == score.f1
    assert details.rewards == pytest.approx([float(one / Fraction(3.25)) for one in expected])


@pytest.mark.parametrize(
    ("text", "gold", "reward"),
    [
        ("[]", [], 1),  # nothing to find, nothing found
        ('{"events": []}', [], 1),
        ("There are no events.", [], 0),  # no JSON says so
        ('[{"trigger": "a", "type": "X"', [], 0),
        ("[]", GOLD, 0),
        (json.dumps(GOLD), [], 0),
        (json.dumps(GOLD), GOLD, 1),
        ('[{"trigger": "died", "type": "Life:Die"}]', [{"trigger": "died", "type": "Life:Die"}], 1),
    ],
)
def test_empty_against_empty_and_silence(text: str, gold: Any, reward: float) -> None:
    assert EventExtraction()([text], events=[gold]) == [reward]


def test_what_empty_against_empty_scores_is_a_setting() -> None:
    assert EventExtraction(empty_score=0.5)(["[]", "[]"], events=[[], GOLD]) == [0.5, 0]
    assert EventExtraction(needs_json=False)(["no", "no"], events=[[], GOLD]) == [1, 0]
    assert event_scores([], []).tc == (1, 1, 1, 0, 0, 0)
    assert event_scores(["[]"], [[]], empty_score=0).tc[:3] == (0, 0, 0)
    both = event_scores(["[]", GOLD], [[], GOLD], empty_score=0)  # counts are added, not scores
    assert both.tc == (1, 1, 1, 2, 2, 2)


def test_case_and_white_space() -> None:
    text = '[{"trigger": " Attacked\\n", "type": "conflict:attack"}]'
    assert event_scores([text], [GOLD]).tc.matched == 1
    scores = event_scores([text], [GOLD], ignore_case=False)
    assert (scores.ti.matched, scores.tc.matched) == (0, 0)


def test_offsets_compare_by_what_they_cover_in_the_source() -> None:
    source = "Rebels attacked the convoy."
    gold = [{"trigger": [7, 15], "type": "Attack", "arguments": {"Attacker": [0, 6]}}]
    text = '[{"trigger": "attacked", "type": "Attack", "arguments": {"Attacker": "rebels"}}]'
    assert EventExtraction()([text], events=[gold]) == [0]
    assert EventExtraction(source="text")([text], events=[gold], text=[source]) == [1]
    tokens = [{"trigger": [1, 2], "type": "Attack", "arguments": {"Attacker": [0, 1]}}]
    assert EventExtraction(source="t")([text], events=[tokens], t=[source.split()]) == [1]
    past = '[{"trigger": [7, 99], "type": "Attack"}]'
    assert event_scores([past], [gold], sources=[source]).ti.matched == 0
    assert event_scores([past], [json.loads(past)], sources=[source]).ti.matched == 1


def test_parts_and_metrics() -> None:
    details = EventExtraction().details([json.dumps(GOLD), "no"], events=[GOLD, GOLD])
    assert set(details.parts) == {*METRICS, "events", "parsed"}
    assert details.parts["events"] == [2, 0]
    assert details.parts["parsed"] == [1, 0]
    assert details.metrics["parsed"] == 0.5
    assert details.metrics["ti"] == pytest.approx(2 * 2 / (2 + 4))  # micro: 0.5 would be the mean


# ---- reading ------------------------------------------------------------------------------------

ONE = '{"trigger": "a", "type": "X"}'
TWO = '{"trigger": "b", "type": "Y"}'
A, B = Event("a", "X"), Event("b", "Y")


@pytest.mark.parametrize(
    ("text", "events"),
    [
        (f"[{ONE}, {TWO}]", [A, B]),
        (f'{{"events": [{ONE}, {TWO}], "note": "x"}}', [A, B]),
        (f"{ONE}\n{TWO}", [A, B]),
        (f"Here they are:\n```json\n[{ONE}]\n```\nDone [1].", [A]),
        (f"```\n[{TWO}]\n```\nno:\n```json\n[{ONE}]", [A]),  # the last fence, and never closed
        (f"```json\n[{ONE}]\n```\n```\nprint()\n```", [A]),  # the last with a bracket
        (f"<think>[{TWO}]</think>[{ONE}]", [A]),
        (f"[{ONE}]<think>[{TWO}", [A]),
        (f"<think>[{TWO}]", None),
        (f"[{ONE}, {TWO}", [A, B]),
        (f"[{ONE}, {TWO[:-1]}", [A]),
        (f"[{ONE}, oops {TWO}]", [A, B]),  # broken at one place
        (f'[{ONE}, {{"trigger": "x, "type": "Y"}},\n{TWO}]', [A, B]),
        (f'[{{"trigger": "x\n{TWO}]', [B]),  # a string ends with its line
        (f"[{ONE},]", [A]),
        (f'5" of [{ONE}]', [A]),
        (f"{{ note [{ONE}]", [A]),
        ('[{"event_type": "X", "trigger": {"text": "a", "start": 1, "end": 2}}]', [A]),
        ('[{"type": "X", "trigger": {"start": 1, "end": 2}}]', [Event((1, 2), "X")]),
        ('[{"type": "Z", "type": "X", "trigger": "a"}]', [A]),  # the last of equal keys
        ('[{"type": 3, "trigger": "a"}, {"type": "X", "trigger": true}]',
         [Event("a"), Event(None, "X")]),
        ('[{"type": null, "event_type": "X", "trigger": "a"}]', [A]),
        ('[{"type": "", "trigger": [3, 2]}, {"type": ["X"]}, 7, null]', []),
        ('[{"type": "X", "trigger": [0, 1e3]}]', [Event(None, "X")]),
        (f'[{{"type": "X", "trigger": [0, {"9" * 5000}]}}]', [Event(None, "X")]),
        ('[{"type": "\\ud800", "trigger": "\\x"}]', [Event("\\x", "\ud800")]),
        ("no events", None),
        ("[", None),
        ("", None),
        ("{}", []),
    ],
)  # fmt: skip
def test_what_is_read(text: str, events: list[Event] | None) -> None:
    assert parse_events(text) == events


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ([{"span": "p", "role": "m"}, {"text": "q"}], [("p", "m"), ("q", None)]),
        ([{"argument": {"text": "p"}, "role": "m"}, {"entity": [1, 2], "role": "n"}],
         [("p", "m"), ((1, 2), "n")]),
        ([{"start": 1, "end": 2, "role": 5}], [((1, 2), None)]),
        ({"m": "p", "n": ["q", [1, 2], None, {"text": "r"}], "o": [3, 4], "l": None},
         [("p", "m"), ("q", "n"), ((1, 2), "n"), ("r", "n"), ((3, 4), "o")]),
        (["p", 3, None, {"role": "m"}, {"span": ""}], []),
        ("p", []),
        (None, []),
    ],
)  # fmt: skip
def test_what_arguments_are_read(arguments: Any, read: list[tuple[Any, ...]]) -> None:
    (event,) = parse_events(json.dumps([{"type": "X", "arguments": arguments}])) or []
    assert event.arguments == tuple(Argument(*one) for one in read)


def test_an_answer_cut_anywhere_has_the_events_that_were_closed() -> None:
    text = json.dumps({"note": "a [b] {c}", "events": GOLD}, indent=1)
    whole = parse_events(text) or []
    ends = []
    for event in GOLD:
        found = text.index(json.dumps(event["trigger"]))
        ends.append(text.index("\n  }", found) + len("\n  }"))
    for cut in range(len(text) + 1):
        assert (parse_events(text[:cut]) or []) == whole[: sum(end <= cut for end in ends)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)  # fmt: skip


@given(st.lists(json_values) | st.dictionaries(st.text(), json_values), st.booleans())
@example([-math.inf], False)
def test_valid_json_is_read_as_by_the_standard_library(value: Any, compact: bool) -> None:
    text = json.dumps(value, indent=None if compact else 2, ensure_ascii=compact)
    assert complete_values(text) == [json.loads(text)]
    assert complete_values(f"So: {text}{text}") == [value, value]


@pytest.mark.parametrize("part", ["[", "{", '{"a":', "[[],", '"', '["', "[1,", "```[", "\\", "[-"])
def test_a_million_brackets_take_no_time(part: str) -> None:
    text = part * (1_000_000 // len(part))
    start = time.process_time()
    assert not parse_events(text)
    assert time.process_time() - start < 1


# ---- what the caller gets wrong -----------------------------------------------------------------


@pytest.mark.parametrize("gold", [None, 3, "no JSON", {"trigger": "a"}, [{"verb": "a"}], ["a"]])
def test_a_target_that_cannot_be_read_is_named(gold: Any) -> None:
    with pytest.raises(ValueError, match=r"events\[1\]: expected .*, got"):
        EventExtraction()(["[]", "[]"], events=[[], gold])
    with pytest.raises(ValueError, match=r"golds\[0\]: expected .*, got"):
        event_scores(["[]"], [gold])


def test_a_target_is_json_or_objects_or_events() -> None:
    text = json.dumps(GOLD)
    golds = [GOLD, text, parse_events(text), tuple(GOLD)]
    assert EventExtraction()([text] * 4, events=golds) == [1] * 4
    assert event_scores(golds, golds).ac_plus.f1 == 1


def test_settings_and_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="weights: expected one above 0, got none"):
        EventExtraction(0, 0, 0, 0)
    with pytest.raises(ValueError, match="tc_weight: expected a number of at least 0, got -1"):
        EventExtraction(tc_weight=-1)
    with pytest.raises(ValueError, match=r"empty_score: expected a number in \[0, 1\], got 2"):
        EventExtraction(empty_score=2)
    with pytest.raises(ValueError, match="golds: expected 1, one a prediction, got 2"):
        event_scores(["[]"], [[], []])
    with pytest.raises(ValueError, match="sources: expected 1, one a document, got 0"):
        event_scores(["[]"], [[]], sources=[])
    with pytest.raises(ValueError, match="text: expected a column of that name, got events"):
        EventExtraction(source="text")(["[]"], events=[[]])
