"""Every test against scipy and statsmodels called by hand, or against its definition."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("statsmodels")
pytest.importorskip("networkx")

from made_cohorts import cohort
from scipy import stats
from statsmodels.duration.hazard_regression import PHReg
from statsmodels.duration.survfunc import survdiff
from statsmodels.stats.multitest import multipletests

from logpi.rewards.hypothesis import Hypothesis, Table, Untestable, judge, run_test
from logpi.rewards.hypothesis import statistics as ours
from logpi.rewards.hypothesis.judge import one_sided

TABLE = cohort(3, rows=80, effect=0.4)
TREATED = TABLE.classes["arm"] == "treated"
SITE_A = TABLE.classes["site"] == "a"
TIME, EVENT = TABLE.survival["death"]
G = TABLE.numbers


def _result(a: str, relation: str, b: str, test: str, *group: str) -> Any:
    return run_test(TABLE, Hypothesis(a, relation, b, "+", test, group))


def _close(found: float, wanted: float) -> bool:
    return math.isclose(found, wanted, rel_tol=1e-10, abs_tol=1e-300)


def test_t() -> None:
    wanted = stats.ttest_ind(G["g0"][TREATED], G["g0"][~TREATED], equal_var=False)
    found = _result("g0", "differs_by", "arm", "t")
    assert _close(found.p, wanted.pvalue)
    assert _close(found.statistic, wanted.statistic)
    assert _close(found.low, wanted.confidence_interval().low)
    assert found.low < found.estimate < found.high
    assert found.effect > 0


def test_rank_sum() -> None:
    wanted = stats.mannwhitneyu(G["g1"][TREATED], G["g1"][~TREATED])
    found = _result("g1", "differs_by", "arm", "rank_sum")
    assert _close(found.p, wanted.pvalue)
    pairs = np.sign(G["g1"][TREATED][:, None] - G["g1"][~TREATED])
    assert _close(found.effect, pairs.mean())  # P(higher) - P(lower)


@pytest.mark.parametrize("test", ["pearson", "spearman"])
def test_correlations(test: str) -> None:
    wanted = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[test](G["g2"], G["g3"])
    found = _result("g2", "correlates_with", "g3", test)
    assert _close(found.p, wanted.pvalue)
    assert _close(found.effect, wanted.statistic)


def test_fisher() -> None:
    counts = [[np.sum(TREATED & SITE_A), np.sum(~TREATED & SITE_A)],
              [np.sum(TREATED & ~SITE_A), np.sum(~TREATED & ~SITE_A)]]  # fmt: skip
    found = _result("site=a", "occurs_with", "arm", "fisher")
    assert _close(found.p, stats.fisher_exact(counts).pvalue)
    assert _close(found.statistic, stats.fisher_exact(counts).statistic)
    assert _close(found.estimate, stats.contingency.odds_ratio(counts).statistic)
    assert _close(abs(found.effect), stats.contingency.association(counts, method="cramer"))
    assert (found.effect > 0) == (found.statistic > 1)


@pytest.mark.parametrize(("first", "second"), [(5, 12), (8, 25), (20, 30)])
def test_fisher_is_exact_on_both_sides(first: int, second: int) -> None:
    """Over every table of these margins: p ≤ x has a probability of at most x, if nothing is there.

    Half of a two-sided p has not: where the other tail holds no table as rare, it is too small.
    """
    overlaps = np.arange(min(first, second) + 1)
    chances = stats.hypergeom(60, first, second).pmf(overlaps)
    sides: dict[str, list[float]] = {"two": [], "+": [], "-": []}
    for overlap in overlaps:
        a, b = np.arange(60) < first, np.arange(60) >= first - overlap
        b &= np.arange(60) < first - overlap + second
        table = Table({}, {"a": np.where(a, "yes", "no"), "b": np.where(b, "yes", "no")}, {})
        found = run_test(table, Hypothesis("a=yes", "occurs_with", "b=yes", "+", "fisher"))
        sides["two"].append(found.p)
        sides["+"].append(one_sided(found, 1))
        sides["-"].append(one_sided(found, -1))
        more, less = chances[overlap:].sum(), chances[: overlap + 1].sum()
        assert found.p_one_sided == pytest.approx(more if found.effect > 0 else less, rel=1e-9)
    for side in sides.values():
        for p in side:
            assert chances[np.array(side) <= p * (1 + 1e-9)].sum() <= p * (1 + 1e-9)


def test_one_sided_is_half_where_the_statistic_is_symmetric() -> None:
    for a, relation, b, test in (
        ("g0", "differs_by", "arm", "t"), ("g0", "differs_by", "arm", "rank_sum"),
        ("g2", "correlates_with", "g3", "pearson"), ("g2", "correlates_with", "g3", "spearman"),
        ("g4", "predicts_hazard_of", "death", "cox"),
        ("arm", "predicts_hazard_of", "death", "log_rank"),
    ):  # fmt: skip
        found = _result(a, relation, b, test)
        assert found.p_one_sided == found.p / 2
        sign = 1 if found.effect > 0 else -1
        assert one_sided(found, sign) == found.p / 2
        assert one_sided(found, -sign) == 1
    greater = stats.ttest_ind(G["g0"][TREATED], G["g0"][~TREATED], equal_var=False,
                              alternative="greater")  # fmt: skip
    assert _close(_result("g0", "differs_by", "arm", "t").p_one_sided, greater.pvalue)


def test_cox() -> None:
    x = G["g4"] / G["g4"].std(ddof=1)
    wanted = PHReg(TIME, x[:, None], status=EVENT, ties="efron").fit()
    found = _result("g4", "predicts_hazard_of", "death", "cox")
    assert _close(found.p, wanted.pvalues[0])
    assert _close(found.estimate, math.exp(wanted.params[0]))
    assert _close(found.low, math.exp(wanted.conf_int()[0][0]))
    assert _close(found.effect, (found.estimate - 1) / (found.estimate + 1))


def test_cox_against_the_partial_likelihood() -> None:
    """Without ties: its gradient is zero at the estimate, its curvature the error."""
    found = _result("g4", "predicts_hazard_of", "death", "cox")
    x = (G["g4"] - G["g4"].mean()) / G["g4"].std(ddof=1)
    beta = math.log(found.estimate)
    gradient = curvature = 0.0
    time = TIME
    for i in np.flatnonzero(EVENT):
        risk = np.exp(beta * x[time >= time[i]])
        weights = risk / risk.sum()
        mean = weights @ x[time >= time[i]]
        gradient += x[i] - mean
        curvature += weights @ x[time >= time[i]] ** 2 - mean**2
    assert abs(gradient) < 1e-6
    assert math.log(found.high / found.estimate) == pytest.approx(1.959964 / curvature**0.5, 1e-5)


def test_log_rank() -> None:
    statistic, p = survdiff(TIME, EVENT, TREATED.astype(float))
    found = _result("arm", "predicts_hazard_of", "death", "log_rank")
    assert _close(found.p, p)
    assert _close(found.statistic, statistic)
    sides = [stats.CensoredData.right_censored(TIME[s], ~EVENT[s]) for s in (TREATED, ~TREATED)]
    assert found.p == pytest.approx(stats.logrank(*sides).pvalue, rel=1e-9)


def test_a_log_rank_p_does_not_round_to_zero() -> None:
    """1 - cdf, as survdiff has it, is 0 here."""
    early = np.arange(400) < 200
    draw = np.random.default_rng(0).exponential(np.where(early, 1.0, 8.0))
    table = Table({}, {"arm": np.where(early, "x", "a")}, {"death": (draw, np.ones(400))})
    found = run_test(table, Hypothesis("arm", "predicts_hazard_of", "death", "+", "log_rank"))
    assert survdiff(draw, np.ones(400), early.astype(float))[1] < 1e-15
    assert 0 < found.p < 1e-20
    assert _close(found.p, stats.chi2.sf(found.statistic, 1))


@pytest.mark.parametrize("pair", [("g0", "differs_by", "arm"), ("g5", "correlates_with", "g6")])
def test_permutation(pair: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """(b + 1) / (m + 1), counted here over the permutations that scipy drew."""
    drawn: list[Any] = []
    asked = stats.permutation_test

    def recording(data: Any, statistic: Any, **settings: Any) -> Any:
        def recorded(x: Any, axis: int) -> Any:
            drawn.append(statistic(x, axis=axis))
            return drawn[-1]

        return asked(data, recorded, **settings)

    monkeypatch.setattr(stats, "permutation_test", recording)
    ours._remembered.cache_clear()
    found = _result(*pair, "permutation")
    null = np.concatenate([np.ravel(values) for values in drawn if np.size(values) > 1])
    observed, sign = abs(found.statistic) * (1 - 1e-12), np.sign(found.effect)
    assert len(null) == ours.RESAMPLES == 999
    assert _close(found.p, (np.sum(np.abs(null) >= observed) + 1) / (999 + 1))
    assert _close(found.p_one_sided, (np.sum(sign * null >= observed) + 1) / (999 + 1))
    wanted = stats.pearsonr(G[pair[0]], TREATED if pair[2] == "arm" else G[pair[2]])
    assert _close(found.effect, wanted.statistic)
    ours._remembered.cache_clear()
    assert run_test(TABLE, Hypothesis(*pair, "-", "permutation")) == found  # the same draws


@pytest.mark.parametrize(
    ("a", "relation", "b", "test"),
    [("g0", "differs_by", "arm=control", "t"), ("g0", "differs_by", "arm=control", "rank_sum"),
     ("g0", "differs_by", "arm=control", "permutation"),
     ("site=a", "occurs_with", "arm=control", "fisher"),
     ("arm=control", "predicts_hazard_of", "death", "cox"),
     ("arm=control", "predicts_hazard_of", "death", "log_rank")],
)  # fmt: skip
def test_the_other_level_turns_the_sign_and_nothing_else(
    a: str, relation: str, b: str, test: str
) -> None:
    one = _result(a, relation, b, test)
    other = _result(
        a.replace("control", "treated"), relation, b.replace("control", "treated"), test
    )
    assert one.effect == pytest.approx(-other.effect, rel=1e-6)
    assert one.p == pytest.approx(other.p, rel=1e-6)


def test_a_group_is_the_rows_it_names() -> None:
    rows = (TABLE.classes["site"] == "b") & TREATED
    wanted = stats.pearsonr(G["g2"][rows], G["g3"][rows])
    found = _result("g2", "correlates_with", "g3", "pearson", "site=b", "arm=treated")
    assert _close(found.p, wanted.pvalue)
    assert found.rows == rows.sum()


def test_missing_values_are_left_out() -> None:
    number, label = G["g0"].copy(), TABLE.classes["arm"].copy()
    number[:10], label[10:20] = np.nan, ""
    number[20] = np.inf
    table = Table({"g0": number}, {"arm": label}, {})
    found = run_test(table, Hypothesis("g0", "differs_by", "arm", "+", "t"))
    side = TREATED[21:]
    wanted = stats.ttest_ind(G["g0"][21:][side], G["g0"][21:][~side], equal_var=False)
    assert _close(found.p, wanted.pvalue)
    assert found.rows == 59


@pytest.mark.parametrize(
    ("hypothesis", "why"),
    [
        (Hypothesis("g99", "differs_by", "arm", "+", "t"), "column of numbers, got 'g99'"),
        (Hypothesis("arm", "differs_by", "site=a", "+", "t"), "column of numbers, got 'arm'"),
        (Hypothesis("g0", "differs_by", "g1", "+", "t"), "column of classes, got 'g1'"),
        (Hypothesis("g0", "differs_by", "site", "+", "t"), "site=level with one of a, b, c"),
        (Hypothesis("g0", "differs_by", "site=d", "+", "t"), "a level among a, b, c"),
        (Hypothesis("g0", "predicts_hazard_of", "relapse", "+", "cox"), "a survival outcome"),
        (Hypothesis("g0", "predicts_hazard_of", "death", "+", "log_rank"), "expected a class"),
        (Hypothesis("g0", "differs_by", "arm", "+", "t", ("site=z",)), "a level among a, b, c"),
        (Hypothesis("few", "differs_by", "arm", "+", "t"), "at least 10 complete rows, got 9"),
        (Hypothesis("same", "differs_by", "arm", "+", "t"), "expected values that vary"),
        (Hypothesis("g0", "differs_by", "rare=x", "+", "t"), "at least 5 rows on each side, got 4"),
        (Hypothesis("g0", "predicts_hazard_of", "never", "+", "cox"), "at least 5 events, got 0"),
        (Hypothesis("split", "predicts_hazard_of", "early", "+", "cox"), "does not converge"),
    ],
)
def test_what_a_table_cannot_answer(hypothesis: Hypothesis, why: str) -> None:
    few = np.where(np.arange(80) < 9, np.arange(80.0), np.nan)
    early = np.arange(80) < 40
    table = Table(
        {**G, "few": few, "same": np.full(80, 0.1)},
        {**TABLE.classes, "rare": ["x"] * 4 + ["y"] * 76, "split": np.where(early, "x", "a")},
        {**TABLE.survival, "never": (TIME, EVENT & False), "early": (np.arange(80.0), early)},
    )
    with pytest.raises(Untestable, match=why):
        run_test(table, hypothesis)


@pytest.mark.parametrize("seed", range(5))
def test_benjamini_hochberg_over_every_test(seed: int) -> None:
    table = cohort(seed, effect=0.3)
    tests = [
        Hypothesis(f"g{i}", "differs_by", "arm", "+", test)
        for i in range(12)
        for test in ("t", "rank_sum")
    ]
    wanted = multipletests([run_test(table, h).p for h in tests], 0.05, method="fdr_bh")
    found = judge(tests, table)
    assert all(_close(v.q, q) for v, q in zip(found, wanted[1], strict=True))
    picked = judge(tests[:3], table, earlier=tests)  # the same, if the rest was looked at before
    assert [v.q for v in picked] == [v.q for v in found[:3]]
    turned = [replace(h, direction="-") for h in tests]
    both = judge([*tests, *turned], table)  # one test, claimed both ways
    assert [v.q for v in both] == [v.q for v in found] * 2
    assert not any(a.accepted and b.accepted for a, b in zip(both[:24], both[24:], strict=True))
