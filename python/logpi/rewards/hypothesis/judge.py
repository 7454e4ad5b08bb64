"""Verdicts on the hypotheses of a run: one false discovery rate over every test that was made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import networkx as nx
from scipy.stats import false_discovery_control

from logpi.rewards import contract
from logpi.rewards.hypothesis.statement import Hypothesis
from logpi.rewards.hypothesis.statistics import Result, Untestable, run_test
from logpi.rewards.hypothesis.table import Table

Relations = Iterable[tuple[str, str]]


class Verdict(NamedTuple):
    """What a hypothesis comes to.

    Attributes:
        hypothesis: as it was proposed.
        result: of its test; None: the table cannot answer.
        why_not: why the table cannot.
        q: Benjamini-Hochberg over every test of the run; 1 without a result.
        accepted: q <= fdr, and the effect has the sign that was claimed.
        held_out: the same test in the held-out cohort, made for what is accepted; else None.
        held_out_q: of its one-sided p in the claimed direction, over the accepted ones; or 1.
        replicated: held_out_q <= fdr: it holds there, too, with the same sign.
        novelty: 1 - 1 / d at distance d in the graph of what is known: 0 if it is known itself, 1
            if nothing leads from one entity to the other.
        first: of the accepted ones about this pair of columns, the one that counts.
    """

    hypothesis: Hypothesis
    result: Result | None
    why_not: str
    q: float
    accepted: bool
    held_out: Result | None
    held_out_q: float
    replicated: bool
    novelty: float
    first: bool


def judge(
    hypotheses: Sequence[Hypothesis],
    table: Table,
    *,
    held_out: Table | None = None,
    known: Relations = (),
    fdr: float = 0.05,
    earlier: Sequence[Hypothesis] = (),
) -> list[Verdict]:
    """One verdict a hypothesis, in order.

    Args:
        hypotheses: of one run. A test that several of them share is made, and counted, once.
        table: the cohort to discover on.
        held_out: the cohort to replicate in. It plays no part in what is accepted.
        known: pairs of columns with a known relation: a graph.
        fdr: the expected share of false ones among the accepted ones, at most.
        earlier: what else was tested in this run: a screen that the hypotheses were picked from.
    """
    contract.check_number("fdr", fdr, 0, 1)
    results: dict[Hypothesis, Result | str] = {}
    for hypothesis in (*earlier, *hypotheses):
        test = replace(hypothesis, direction="+")
        if test not in results:
            results[test] = _tried(table, test)
    q_values = _false_discovery_rates(
        {test: found.p for test, found in results.items() if not isinstance(found, str)}
    )
    judged = []
    for hypothesis in hypotheses:
        test = replace(hypothesis, direction="+")
        found, q = results[test], q_values.get(test, 1.0)
        result = None if isinstance(found, str) else found
        why_not = found if isinstance(found, str) else ""
        accepted = result is not None and q <= fdr and result.effect * hypothesis.sign > 0
        judged.append(Verdict(hypothesis, result, why_not, q, accepted, None, 1.0, False,
                              novelty(hypothesis, known), False))  # fmt: skip
    return _firsts(_replications(judged, held_out, fdr))


def _tried(table: Table, hypothesis: Hypothesis) -> Result | str:
    try:
        return run_test(table, hypothesis)
    except Untestable as error:
        return str(error)


def _false_discovery_rates(p_values: dict[Hypothesis, float]) -> dict[Hypothesis, float]:
    if not p_values:
        return {}
    q_values = false_discovery_control(list(p_values.values()), method="bh")
    return dict(zip(p_values, (float(q) for q in q_values), strict=True))


def _replications(judged: list[Verdict], held_out: Table | None, fdr: float) -> list[Verdict]:
    if held_out is None:
        return judged
    found: dict[Hypothesis, Result] = {}
    for verdict in judged:
        result = _tried(held_out, verdict.hypothesis) if verdict.accepted else ""
        if not isinstance(result, str):
            found[verdict.hypothesis] = result
    q_values = _false_discovery_rates({h: one_sided(r, h.sign) for h, r in found.items()})
    return [
        v._replace(
            held_out=found.get(v.hypothesis),
            held_out_q=q_values.get(v.hypothesis, 1.0),
            replicated=q_values.get(v.hypothesis, 1.0) <= fdr,
        )
        for v in judged
    ]


def one_sided(result: Result, sign: int) -> float:
    """p in the direction that was claimed; 1, no less than it, where the effect has the other."""
    return result.p_one_sided if result.effect * sign > 0 else 1.0


def _firsts(judged: list[Verdict]) -> list[Verdict]:
    """One a pair of columns: else a finding would be paid again in each group and by each test."""
    best: dict[frozenset[str], int] = {}
    for i, verdict in enumerate(judged):
        other = best.get(verdict.hypothesis.pair)
        if verdict.accepted and (other is None or _rank(verdict) > _rank(judged[other])):
            best[verdict.hypothesis.pair] = i
    chosen = set(best.values())
    return [verdict._replace(first=i in chosen) for i, verdict in enumerate(judged)]


def _rank(verdict: Verdict) -> tuple[bool, float]:
    assert verdict.result is not None
    return verdict.replicated, abs(verdict.result.effect)


def novelty(hypothesis: Hypothesis, known: Relations) -> float:
    """1 - 1 / d, d the distance of its columns in the graph of known relations."""
    graph = _graph(frozenset(frozenset(pair) for pair in known))
    a, b = hypothesis.columns
    try:
        distance: Any = nx.shortest_path_length(graph, a, b)
    except (nx.NodeNotFound, nx.NetworkXNoPath):
        return 1.0
    return 1 - 1 / float(distance)


@lru_cache(maxsize=64)
def _graph(pairs: frozenset[frozenset[str]]) -> Any:
    graph = nx.Graph()
    graph.add_edges_from(tuple(pair) for pair in pairs if len(pair) == 2)
    return graph
