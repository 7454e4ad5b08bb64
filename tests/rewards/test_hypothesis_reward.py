"""What hypotheses earn: the truth does, fishing does not, and no text raises."""

from __future__ import annotations

import json
import math
import pickle
import random
import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("statsmodels")
pytest.importorskip("networkx")

from made_cohorts import PLANTED, cohort, fishing
from texts import large_texts, random_texts

from logpi.rewards.hypothesis import (
    Hypothesis,
    HypothesisReward,
    Table,
    Weights,
    judge,
    novelty,
    read,
    run_test,
)

TABLE = cohort(0, effect=0.8)
OTHER = cohort(1, effect=0.8)
REWARD = HypothesisReward(TABLE, held_out=OTHER)


def test_the_truth_earns_and_each_part_counts() -> None:
    found = REWARD.details([json.dumps(PLANTED)])
    assert found.parts["accepted"] == found.parts["replicated"] == [4.0]
    effects = [abs(run_test(TABLE, h).effect) for h in read(json.dumps(PLANTED)).hypotheses]
    wanted = 4 * (0.2 + 0.4 + 0.2) + 0.2 * sum(effects) - 4 * 0.05
    assert found.rewards == [pytest.approx(wanted)]
    known = HypothesisReward(TABLE, held_out=OTHER, known=(("g0", "arm"), ("g1", "arm")))
    less = known(["```json\n" + json.dumps(PLANTED[:2]) + "\n```"])
    new = REWARD([json.dumps({"hypotheses": PLANTED[:2]})])
    assert less[0] == pytest.approx(new[0] - 2 * 0.2)
    alone = HypothesisReward(TABLE)([json.dumps(PLANTED)])
    assert alone[0] == pytest.approx(wanted - 4 * 0.4)


def test_the_wrong_sign_earns_nothing() -> None:
    turned = [{**h, "direction": "-" if h["direction"] == "+" else "+"} for h in PLANTED]
    found = REWARD.details([json.dumps(turned)])
    assert found.rewards == [pytest.approx(-0.2)]
    assert found.parts["tested"] == [4.0]
    elsewhere = cohort(1, effect=-0.8)  # as claimed, but there alone: it is not even tested there
    verdicts = judge(read(json.dumps(turned)).hypotheses, TABLE, held_out=elsewhere)
    assert all(v.held_out is None and v.held_out_q == 1 and not v.replicated for v in verdicts)


def test_replication_needs_the_same_sign() -> None:
    opposite = HypothesisReward(TABLE, held_out=cohort(1, effect=-0.8))
    found = opposite.details([json.dumps(PLANTED)])
    assert found.parts["accepted"] == [4.0]
    assert found.parts["replicated"] == [0.0]
    assert found.metrics["replicated_fraction"] == 0


def test_a_finding_is_paid_once() -> None:
    """Whatever the test, the level, the group or the order: one pair of columns."""
    again = [
        PLANTED[0],
        PLANTED[0],
        {**PLANTED[0], "test": "rank_sum"},
        {**PLANTED[0], "entity_b": "arm=control", "direction": "-"},
        {**PLANTED[0], "group": ["site=a"]},
    ]
    once, five = REWARD([json.dumps(PLANTED[:1]), json.dumps(again)])
    assert five <= once - 4 * 0.05 + 0.02  # the best of them may have a larger effect
    assert REWARD.details([json.dumps(again)]).parts["accepted"][0] >= 4
    swapped = {**PLANTED[2], "entity_a": "g3", "entity_b": "g2"}
    one, two = REWARD([json.dumps([PLANTED[2]]), json.dumps([PLANTED[2], swapped])])
    assert two == pytest.approx(one - 0.05)


def test_novelty_is_a_distance() -> None:
    known = [("g0", "arm"), ("arm", "g1"), ("g1", "g2"), ("x", "x")]
    for entity, wanted in (("g0", 0), ("g2", 0.5), ("g3", 1)):
        claim = Hypothesis(entity, "differs_by", "arm=treated", "+", "t")
        assert novelty(claim, known) == wanted
    assert novelty(Hypothesis("g0", "correlates_with", "g2", "+", "pearson"), known) == 1 - 1 / 3


def test_nothing_proposed_is_zero_and_nonsense_costs() -> None:
    bad = {**PLANTED[0], "test": "cox"}
    untestable = {**PLANTED[0], "entity_a": "TP53"}
    texts = ["[]", '{"hypotheses": []}', "no idea", "", json.dumps([bad]), json.dumps([untestable])]
    assert REWARD(texts) == [0.0, 0.0] + [-0.05] * 4
    many = json.dumps(PLANTED * 5)
    found = REWARD.details([many])
    assert found.rewards == [pytest.approx(-16 * 0.05)]  # 20 are more than 16: none is tested
    assert found.parts["tested"] == [0.0]


@pytest.mark.parametrize("family", ["completion", "batch"])
@pytest.mark.parametrize("count", [1, 4, 16])
def test_fishing_earns_less_than_nothing(family: str, count: int) -> None:
    draw = random.Random(count)
    noise = HypothesisReward(cohort(5), held_out=cohort(6), family=family)
    earned = noise([fishing(draw, count) for _ in range(60)])
    assert np.mean(earned) < -0.5 * count * 0.05
    assert noise(["[]"]) == [0.0]


def test_fishing_beside_the_truth_earns_less_than_the_truth() -> None:
    draw = random.Random(0)
    taken = {frozenset(("g0", "arm")), frozenset(("g1", "arm")), frozenset(("g2", "g3")),
             frozenset(("g4", "death"))}  # fmt: skip
    honest = REWARD([json.dumps(PLANTED)])[0]
    fished = []
    for _ in range(40):
        noise = [h for h in json.loads(fishing(draw, 12))
                 if frozenset((h["entity_a"], h["entity_b"])) not in taken]  # fmt: skip
        fished.append(REWARD([json.dumps(PLANTED + noise)])[0])
    assert np.mean(fished) < honest - 0.3


def test_a_batch_is_one_family() -> None:
    """A weak finding is accepted alone, and not as the best of 61."""
    table = cohort(2, effect=0.35)
    claim = json.dumps(PLANTED[1])
    q = judge(read(claim).hypotheses, table)[0].q
    assert 0.05 / 61 < q < 0.05
    rest = [fishing(random.Random(i), 10) for i in range(6)]
    alone = HypothesisReward(table)([claim, *rest])
    together = HypothesisReward(table, family="batch")([claim, *rest])
    assert alone[0] > 0 > together[0]


def test_a_reward_and_a_table_are_values() -> None:
    again = pickle.loads(pickle.dumps(REWARD))
    assert again == REWARD
    assert hash(again) == hash(REWARD)
    assert REWARD.__name__ == "hypothesis_reward"
    assert TABLE == cohort(0, effect=0.8) != OTHER
    with pytest.raises(ValueError, match="read-only"):
        TABLE.numbers["g0"][0] = 1


def test_from_a_frame() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({
        "id": range(4), "age": [1, 2, None, 4], "er": pandas.Categorical([1, 0, 1, None]),
        "ok": [True, False, True, True], "t": [1.0, 2, 3, 4], "e": [0, 1, 1, 0],
    })  # fmt: skip
    table = Table.from_frame(frame, survival={"death": ("t", "e")}, leave_out=["id"])
    assert table.rows == 4
    assert list(table.numbers) == ["age"]
    assert table.levels == {"er": ["0.0", "1.0"], "ok": ["False", "True"]} or table.levels == {
        "er": ["0", "1"], "ok": ["False", "True"]}  # fmt: skip
    assert table.survival["death"][1].tolist() == [False, True, True, False]
    with pytest.raises(ValueError, match="day: expected a column of the frame"):
        Table.from_frame(frame, survival={"death": ("day", "e")})


@pytest.mark.parametrize(
    ("settings", "error", "why"),
    [
        ({"table": "x"}, TypeError, "table: expected a Table, got str"),
        ({"held_out": 3}, TypeError, "held_out: expected a Table, got int"),
        ({"held_out": TABLE}, ValueError, "held_out: expected another cohort than table"),
        ({"fdr": 2.0}, ValueError, r"fdr: expected a number in \[0, 1\], got 2"),
        ({"cost": 0.01}, ValueError, "cost: expected a number of at least 0.05, got 0.01"),
        ({"cost": True}, TypeError, "cost: expected a number, got bool"),
        ({"max_hypotheses": 0}, ValueError, "max_hypotheses: expected at least 1, got 0"),
        ({"family": "run"}, ValueError, "family: expected 'completion' or 'batch', got 'run'"),
        ({"known": [("a",)]}, ValueError, r"known\[0\]: expected two names"),
    ],
)
def test_wrong_settings_raise(settings: dict[str, Any], error: type, why: str) -> None:
    with pytest.raises(error, match=why):
        HypothesisReward(**{"table": TABLE, **settings})


def test_wrong_weights_and_tables_raise() -> None:
    with pytest.raises(ValueError, match=r"weights: expected a sum of 1, got 1\.6"):
        Weights(significance=0.8)
    for numbers, classes, survival, why in (
        ({"a=b": [1]}, {}, {}, "a name without '='"),
        ({"a": [1]}, {"a": ["x"]}, {}, "column 'a': expected one of that name"),
        ({"a": [1]}, {"b": ["x", "y"]}, {}, "columns: expected one length"),
        ({"a": [[1]]}, {}, {}, "a: expected one dimension, got 2"),
        ({}, {}, {}, "expected a column, got none"),
        ({}, {}, {"d": ([1, 2], [0])}, "d: expected as many events as times, got 1, 2"),
        ({}, {}, {"d": ([1, 2], [0, 2])}, "d: expected events that are 0 or 1"),
        ({}, {}, {"d": ([1, -2], [0, 1])}, "d: expected times of at least 0"),
    ):
        with pytest.raises(ValueError, match=why):
            Table(numbers, classes, survival)


@pytest.mark.parametrize(
    "text",
    [
        'I think so. ```json\n[{H}]\n```', "so: [{H}] as I said", "{H}", '{"hypotheses": [{H}]}',
        "```\n[]\n``` no: ```json\n[{H}]\n``` done", "<think>[1] {x}</think> {H}",
    ],
)  # fmt: skip
def test_reading(text: str) -> None:
    reading = read(text.replace("{H}", json.dumps(PLANTED[0])))
    assert reading == ([Hypothesis("g0", "differs_by", "arm", "+", "t")], [])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"relation": "causes"}, "relation: expected one of differs_by"),
        ({"test": "anova"}, "test: expected one of t, rank_sum, permutation for differs_by"),
        ({"direction": "up"}, "direction: expected"),
        ({"entity_a": 3}, "entity_a: expected a text"),
        ({"entity_a": "arm=x"}, "entity_b: expected another column"),
        ({"group": ["arm=treated"]}, "group: expected columns other than"),
        ({"group": "site=a"}, "group: expected a list"),
        ({"group": ["site"]}, "group: expected conditions"),
        ({"group": ["a=1", "b=1", "c=1"]}, "group: expected up to 2"),
        ({"p": 0.01}, "expected the keys .*, got 'p'"),
        ({"entity_b": ["x"]}, "entity_b: expected a text"),
    ],
)
def test_malformed(change: dict[str, Any], why: str) -> None:
    reading = read(json.dumps([{**PLANTED[0], **change}]))
    assert reading.hypotheses == []
    assert len(reading.malformed) == 1
    with pytest.raises(ValueError, match=why):
        raise ValueError(reading.malformed[0])


def _mutated(count: int, seed: int) -> list[str]:
    """Texts that are nearly hypotheses: a share of their characters replaced, or cut."""
    draw = random.Random(seed)
    found = []
    for noise in random_texts(count, seed):
        text = fishing(draw, draw.randint(0, 3))
        kind = draw.random()
        if kind < 0.3:
            at = draw.randint(0, len(text))
            text = text[:at] + noise + text[at + draw.randint(0, 5) :]
        elif kind < 0.5:
            text = text[: draw.randint(0, len(text))]
        elif kind < 0.7:
            key = draw.choice(["entity_a", "entity_b", "relation", "direction", "test", "group"])
            value = draw.choice([noise, [noise], None, 1e999, {}, "g1=g2", ["site=" + noise]])
            text = json.dumps([{**PLANTED[0], key: value}])
        elif kind < 0.8:
            text = noise
        found.append(text)
    return found


@pytest.mark.parametrize("count", [3_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_no_text_raises(count: int) -> None:
    texts = _mutated(count, seed=count)
    for start in range(0, count, 8):
        rewards = REWARD(texts[start : start + 8])
        assert all(-0.8 <= reward <= 16 for reward in rewards)
    assert len({round(reward, 6) for reward in REWARD(texts[:400])}) > 3  # some do earn


@pytest.mark.parametrize("size", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_large_texts(size: int) -> None:
    texts = large_texts(size)
    for part in ("[", '{"a":', '[{"', "```json\n", "[[{", '{"hypotheses": ', "{}, ", "1"):
        texts[part] = "[" + part * (size // len(part))
    texts["many"] = "[" + "{}," * (size // 3) + "{}]"
    for shape, text in texts.items():
        before = time.process_time()
        rewards = REWARD([text])
        assert math.isfinite(rewards[0]), shape
        assert time.process_time() - before < 1, shape
