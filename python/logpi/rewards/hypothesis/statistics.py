"""The tests, by scipy and statsmodels: a hypothesis and a table in, p, effect and interval out."""

from __future__ import annotations

import math
import warnings
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.duration.hazard_regression import PHReg
from statsmodels.duration.survfunc import survdiff

from logpi.rewards.hypothesis.statement import Hypothesis
from logpi.rewards.hypothesis.table import MISSING, Floats, Table

MIN_ROWS = 10  # complete ones
MIN_CLASS = 5  # rows on each side of a class, and events of a survival outcome
RESAMPLES = 999  # of a permutation test; the least p is 1 / 1000
CONFIDENCE = 0.95

Bools = NDArray[np.bool_]


class Untestable(ValueError):
    """The table cannot answer: no such column, the wrong kind of one, too few rows."""


class Result(NamedTuple):
    """What a test found.

    Attributes:
        p: two-sided.
        p_one_sided: in the direction of the effect.
        effect: in [-1, 1], its sign that of "+": the point-biserial correlation (t, permutation of
            a class), rank-biserial (rank_sum), r (pearson, permutation), rho (spearman), phi
            (fisher), (HR - 1) / (HR + 1) (cox, log_rank).
        estimate, low, high: the same on its own scale, and a 95 % interval; NaN: none is known.
        scale: "difference of means", "hazard ratio", ..; of a number the hazard ratio is that of
            one standard deviation.
        rows: complete rows of the group.
        statistic: the test's own.
    """

    p: float
    p_one_sided: float
    effect: float
    estimate: float
    low: float
    high: float
    scale: str
    rows: int
    statistic: float


def run_test(table: Table, hypothesis: Hypothesis) -> Result:
    """The hypothesis's test on the table; its direction plays no part. Raises Untestable.

    Deterministic: permutations are drawn from one seed. Results are remembered.
    """
    h = hypothesis
    if h.direction != "+":  # one test, whatever was claimed of it
        h = Hypothesis(h.entity_a, h.relation, h.entity_b, "+", h.test, h.group)
    found = _remembered(table, h)
    if isinstance(found, str):
        raise Untestable(found)
    return found


def forget() -> None:
    """Drops the remembered results, so that each test is made again."""
    _remembered.cache_clear()


@lru_cache(maxsize=65_536)
def _remembered(table: Table, h: Hypothesis) -> Result | str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is undefined comes out as NaN
            found = _test(table, h)
    except Untestable as error:
        return str(error)
    except (np.linalg.LinAlgError, ZeroDivisionError, FloatingPointError) as error:
        return f"{h.test}: {error}"
    if not (math.isfinite(found.p) and math.isfinite(found.effect)):
        return f"{h.test}: not defined on these rows"
    return found


def _test(table: Table, h: Hypothesis) -> Result:
    keep = np.ones(table.rows, bool)
    for condition in h.group:
        holds, known = _class(table, condition)
        keep &= holds & known
    if h.relation == "predicts_hazard_of":
        return _survival(table, h, keep)
    if h.relation == "differs_by":
        number = _number(table, h.entity_a)
        holds, known = _class(table, h.entity_b)
        keep &= known & ~np.isnan(number)
        _enough(keep, holds)
        return {"t": _t, "rank_sum": _rank_sum, "permutation": _permutation}[h.test](
            number[keep], holds[keep]
        )
    if h.relation == "correlates_with":
        a, b = _number(table, h.entity_a), _number(table, h.entity_b)
        keep &= ~np.isnan(a) & ~np.isnan(b)
        _enough(keep)
        return {"pearson": _pearson, "spearman": _spearman, "permutation": _permutation}[h.test](
            _varied(h.entity_a, a[keep]), _varied(h.entity_b, b[keep])
        )
    first, known_a = _class(table, h.entity_a)
    second, known_b = _class(table, h.entity_b)
    keep &= known_a & known_b
    _enough(keep, first, second)
    return _fisher(first[keep], second[keep])


# ---- each test ----------------------------------------------------------------------------------


def _t(number: Floats, holds: Bools) -> Result:
    """Welch's: no equal variances are assumed."""
    _varied("entity_a", number)
    found: Any = stats.ttest_ind(number[holds], number[~holds], equal_var=False)
    t, freedom = float(found.statistic), float(found.df)
    low, high = found.confidence_interval(CONFIDENCE)
    difference = float(number[holds].mean() - number[~holds].mean())
    effect = t / math.sqrt(t * t + freedom) if math.isfinite(t) else math.nan
    p = float(found.pvalue)
    return Result(p, p / 2, effect, difference, float(low), float(high),
                  "difference of means", len(number), t)  # fmt: skip


def _rank_sum(number: Floats, holds: Bools) -> Result:
    _varied("entity_a", number)
    found: Any = stats.mannwhitneyu(number[holds], number[~holds])
    pairs = int(holds.sum()) * int((~holds).sum())
    effect = 2 * float(found.statistic) / pairs - 1
    p = float(found.pvalue)
    return Result(p, p / 2, effect, effect, math.nan, math.nan,
                  "rank-biserial correlation", len(number), float(found.statistic))  # fmt: skip


def _pearson(a: Floats, b: Floats) -> Result:
    found: Any = stats.pearsonr(a, b)
    low, high = found.confidence_interval(CONFIDENCE)
    r, p = float(found.statistic), float(found.pvalue)
    return Result(p, p / 2, r, r, float(low), float(high), "correlation", len(a), r)


def _spearman(a: Floats, b: Floats) -> Result:
    found: Any = stats.spearmanr(a, b)
    rho, p = float(found.statistic), float(found.pvalue)
    return Result(p, p / 2, rho, rho, math.nan, math.nan, "rank correlation", len(a), rho)


def _permutation(a: Floats, b: Floats | Bools) -> Result:
    """p = (b + 1) / (m + 1) (Phipson and Smyth 2010): never 0, and valid for any m.

    Two-sided of |r|; one-sided of r: half of the former is no p where the draws are skewed.
    """
    x, y = _centred(_varied("entity_a", a)), _centred(b.astype(np.float64))
    r = float(x @ y)
    found: Any = stats.permutation_test(
        (x,),
        lambda drawn, axis: np.sum(drawn * y, axis=axis),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 4_000_000 // len(x)),
        alternative="greater" if r > 0 else "less",
        rng=np.random.default_rng(0),
    )
    as_far = np.abs(found.null_distribution) >= abs(r) * (
        1 - 1e-12
    )  # one of them is up to rounding
    p = (int(as_far.sum()) + 1) / (RESAMPLES + 1)
    return Result(p, float(found.pvalue), r, r, math.nan, math.nan, "correlation", len(x), r)


def _fisher(first: Bools, second: Bools) -> Result:
    counts = np.array([[np.sum(first & second), np.sum(first & ~second)],
                       [np.sum(~first & second), np.sum(~first & ~second)]])  # fmt: skip
    found: Any = stats.fisher_exact(counts)
    ratio: Any = stats.contingency.odds_ratio(counts)
    low, high = ratio.confidence_interval(CONFIDENCE)
    phi = float(np.corrcoef(first, second)[0, 1])
    # one tail may hold all of the two-sided p: half of that would be too small
    tail: Any = stats.fisher_exact(counts, alternative="greater" if phi > 0 else "less")
    return Result(float(found.pvalue), float(tail.pvalue), phi, float(ratio.statistic), float(low),
                  float(high), "odds ratio", len(first), float(found.statistic))  # fmt: skip


def _survival(table: Table, h: Hypothesis, keep: Bools) -> Result:
    if h.entity_b not in table.survival:
        raise Untestable(f"entity_b: expected a survival outcome, got {h.entity_b!r}")
    time, event = table.survival[h.entity_b]
    keep = keep & ~np.isnan(time)
    if h.entity_a in table.numbers:
        if h.test == "log_rank":
            raise Untestable("log_rank: expected a class for entity_a, got a number")
        number = _number(table, h.entity_a)
        keep &= ~np.isnan(number)
        _enough(keep, event=event)
        x = _varied("entity_a", number[keep])
        x = (x - x.mean()) / x.std(ddof=1)
    else:
        holds, known = _class(table, h.entity_a)
        keep &= known
        _enough(keep, holds, event=event)
        x = holds[keep].astype(np.float64)
    time, event = time[keep], event[keep]
    fit = PHReg(time, x[:, None], status=event, ties="efron").fit()
    log_ratio, width = float(fit.params[0]), float(fit.bse[0])
    if not (math.isfinite(log_ratio) and abs(log_ratio) < 10 and 0 < width < 10):
        raise Untestable(f"{h.test}: the hazard ratio does not converge")
    low, high = fit.conf_int(alpha=1 - CONFIDENCE)[0]
    if h.test == "cox":  # Wald's test
        p, statistic = float(fit.pvalues[0]), log_ratio / width
    else:
        statistic = float(survdiff(time, event, x)[0])
        p = float(stats.chi2.sf(statistic, 1))  # survdiff's own is 1 - cdf: 0 below 1e-16
    return Result(p, p / 2, math.tanh(log_ratio / 2), math.exp(log_ratio), math.exp(low),
                  math.exp(high), "hazard ratio", len(time), statistic)  # fmt: skip


# ---- columns ------------------------------------------------------------------------------------


def _number(table: Table, entity: str) -> Floats:
    if entity not in table.numbers:
        raise Untestable(f"expected a column of numbers, got {entity[:50]!r}")
    return table.numbers[entity]  # type: ignore[no-any-return]


def _class(table: Table, entity: str) -> tuple[Bools, Bools]:
    """(holds, known) a row. Of a class with two levels the name alone stands for the second."""
    name, _, level = entity.partition("=")
    if name not in table.classes:
        raise Untestable(f"expected a column of classes, got {name[:50]!r}")
    levels = table.levels[name]
    if "=" not in entity:
        if len(levels) != 2:
            raise Untestable(f"{name}: expected {name}=level with one of {', '.join(levels)[:50]}")
        level = levels[1]
    if level not in levels:
        raise Untestable(f"{name}: expected a level among {', '.join(levels)[:50]}")
    column = table.classes[name]
    return column == level, column != MISSING


def _enough(keep: Bools, *sides: Bools, event: Bools | None = None) -> None:
    if keep.sum() < MIN_ROWS:
        raise Untestable(f"expected at least {MIN_ROWS} complete rows, got {keep.sum()}")
    for holds in sides:
        least = min(int((keep & holds).sum()), int((keep & ~holds).sum()))
        if least < MIN_CLASS:
            raise Untestable(f"expected at least {MIN_CLASS} rows on each side, got {least}")
    if event is not None and (keep & event).sum() < MIN_CLASS:
        raise Untestable(f"expected at least {MIN_CLASS} events, got {(keep & event).sum()}")


def _varied(name: str, number: Floats) -> Floats:
    if np.ptp(number) <= 1e-9 * np.abs(number).max():
        raise Untestable(f"{name[:50]}: expected values that vary")
    return number


def _centred(number: Floats) -> Floats:
    number = number - number.mean()
    return number / np.linalg.norm(number)
