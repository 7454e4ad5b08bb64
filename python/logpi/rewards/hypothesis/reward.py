"""The reward of a completion that proposes hypotheses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from logpi.rewards import contract
from logpi.rewards.contract import Details, Reward
from logpi.rewards.hypothesis.judge import Verdict, judge
from logpi.rewards.hypothesis.statement import Hypothesis, Reading, read
from logpi.rewards.hypothesis.table import Table


@dataclass(frozen=True)
class Weights:
    """What an accepted hypothesis earns: shares of 1. What is not accepted earns none of them.

    Args:
        significance: for being accepted.
        effect: times |effect|, which is in [0, 1].
        replication: for holding in the held-out cohort, with the same sign.
        novelty: times 1 - 1 / d in the graph of known relations.
    """

    significance: float = 0.2
    effect: float = 0.2
    replication: float = 0.4
    novelty: float = 0.2

    def __post_init__(self) -> None:
        for field in fields(self):
            contract.check_number(f"weights.{field.name}", getattr(self, field.name), 0, 1)
        total = math.fsum(getattr(self, field.name) for field in fields(self))
        if not math.isclose(total, 1):
            raise ValueError(f"weights: expected a sum of 1, got {total}")


@dataclass(frozen=True)
class HypothesisReward(Reward):
    """Sum of what the accepted hypotheses of a completion earn, less `cost` for each proposed one.

    A completion is read by `read`; `[]` proposes nothing and earns 0. A hypothesis is accepted if
    its q is at most `fdr`, Benjamini-Hochberg over every test of the run, and its sign is the one
    claimed. Accepted ones about the same two columns earn once. See docs/rewards/hypothesis.md.

    Args:
        table: the cohort to discover on.
        held_out: the cohort to replicate in; without one nothing replicates.
        known: pairs of columns with a known relation.
        fdr: of the accepted ones.
        cost: of each proposed hypothesis, malformed ones included. At least `fdr`: a claim without
            truth is accepted with a probability of at most fdr and then earns at most 1.
        weights: of the parts of a gain.
        max_hypotheses: of a completion. Of more none is tested, and this many are paid.
        family: what a run is: "completion", or "batch": every test of the call.
    """

    table: Table
    held_out: Table | None = None
    known: tuple[tuple[str, str], ...] = ()
    fdr: float = 0.05
    cost: float = 0.05
    weights: Weights = Weights()  # frozen, too
    max_hypotheses: int = 16
    family: str = "completion"

    def __post_init__(self) -> None:
        if not isinstance(self.table, Table):
            raise TypeError(f"table: expected a Table, got {type(self.table).__name__}")
        if self.held_out is not None and not isinstance(self.held_out, Table):
            raise TypeError(f"held_out: expected a Table, got {type(self.held_out).__name__}")
        if self.held_out == self.table:
            raise ValueError("held_out: expected another cohort than table, got the same")
        object.__setattr__(self, "known", _pairs(self.known))
        contract.check_number("fdr", self.fdr, 0, 1)
        contract.check_number("cost", self.cost, self.fdr)
        contract.check_count("max_hypotheses", self.max_hypotheses)
        contract.check_choice("family", self.family, "completion", "batch")

    def verdicts(self, texts: list[str]) -> list[list[Verdict]]:
        """Of each text, one verdict a hypothesis that is tested."""
        return self._verdicts([self._tested(read(text)) for text in texts])

    def _tested(self, reading: Reading) -> list[Hypothesis]:
        proposed = len(reading.hypotheses) + len(reading.malformed)
        return reading.hypotheses if proposed <= self.max_hypotheses else []

    def _verdicts(self, proposed: list[list[Hypothesis]]) -> list[list[Verdict]]:
        run = [h for hypotheses in proposed for h in hypotheses]
        return [
            judge(
                hypotheses,
                self.table,
                held_out=self.held_out,
                known=self.known,
                fdr=self.fdr,
                earlier=run if self.family == "batch" else (),
            )
            for hypotheses in proposed
        ]

    def gain(self, verdict: Verdict) -> float:
        """In [0, 1]; 0 unless it is accepted and the first of its pair."""
        if not verdict.first or verdict.result is None:
            return 0.0
        w = self.weights
        return (
            w.significance
            + w.effect * abs(verdict.result.effect)
            + w.replication * verdict.replicated
            + w.novelty * verdict.novelty
        )

    def _details(self, texts: list[str], columns: Mapping[str, Any]) -> Details:
        readings = [read(text) for text in texts]
        verdicts = self._verdicts([self._tested(reading) for reading in readings])
        gains = [math.fsum(self.gain(verdict) for verdict in one) for one in verdicts]
        proposed = [
            min(len(reading.hypotheses) + len(reading.malformed), self.max_hypotheses)
            for reading in readings
        ]
        costs = [self.cost * count for count in proposed]
        parts = {
            "gain": gains,
            "cost": costs,
            "proposed": [float(count) for count in proposed],
            "tested": _counts(verdicts, "result"),
            "accepted": _counts(verdicts, "accepted"),
            "replicated": _counts(verdicts, "replicated"),
        }
        every = [verdict for one in verdicts for verdict in one]
        accepted = [verdict for verdict in every if verdict.accepted]
        metrics = {name: contract.mean(parts[name]) for name in ("proposed", "accepted")}
        metrics["valid_fraction"] = sum(parts["tested"]) / max(sum(proposed), 1)
        metrics["replicated_fraction"] = contract.mean([float(v.replicated) for v in accepted])
        metrics["novelty"] = contract.mean([v.novelty for v in accepted])
        rewards = [gain - cost for gain, cost in zip(gains, costs, strict=True)]
        return Details(rewards, parts, metrics)


def _counts(verdicts: list[list[Verdict]], name: str) -> list[float]:
    return [float(sum(bool(getattr(verdict, name)) for verdict in one)) for one in verdicts]


def _pairs(known: Any) -> tuple[tuple[str, str], ...]:
    pairs = tuple(tuple(pair) for pair in known)
    for i, pair in enumerate(pairs):
        if len(pair) != 2 or not all(isinstance(name, str) for name in pair):
            raise ValueError(f"known[{i}]: expected two names, got {pair!r}")
    return pairs
