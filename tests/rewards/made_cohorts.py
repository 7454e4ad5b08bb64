"""Cohorts with effects that were planted, and with none."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np

from logpi.rewards.hypothesis import Table

GENES = tuple(f"g{i}" for i in range(12))
TESTS = (
    ("differs_by", "t"), ("differs_by", "rank_sum"), ("correlates_with", "pearson"),
    ("correlates_with", "spearman"), ("predicts_hazard_of", "cox"),
)  # fmt: skip


def cohort(seed: int, rows: int = 120, effect: float = 0.0) -> Table:
    """Noise; `effect` moves g0 and g1 by the class, ties g2 to g3, and makes g4 shorten survival.

    Effects are in standard deviations, and the log of the hazard ratio of one.
    """
    draw = np.random.default_rng(seed)
    numbers = {gene: draw.normal(size=rows) for gene in GENES}
    arm = draw.integers(0, 2, rows)
    numbers["g0"] += effect * arm
    numbers["g1"] -= effect * arm
    numbers["g3"] += effect * numbers["g2"]
    time = draw.exponential(np.exp(-effect * numbers["g4"]))
    end = draw.exponential(2.0, rows)
    classes = {"arm": np.where(arm == 1, "treated", "control"),
               "site": draw.choice(["a", "b", "c"], rows)}  # fmt: skip
    survival = {"death": (np.minimum(time, end), time <= end)}
    return Table(numbers, classes, survival)


PLANTED: list[dict[str, Any]] = [
    {"entity_a": "g0", "relation": "differs_by", "entity_b": "arm", "direction": "+", "test": "t"},
    {"entity_a": "g1", "relation": "differs_by", "entity_b": "arm", "direction": "-",
     "test": "rank_sum"},
    {"entity_a": "g2", "relation": "correlates_with", "entity_b": "g3", "direction": "+",
     "test": "pearson"},
    {"entity_a": "g4", "relation": "predicts_hazard_of", "entity_b": "death", "direction": "+",
     "test": "cox"},
]  # fmt: skip


def fishing(draw: random.Random, count: int) -> str:
    """A completion with so many hypotheses at random, all of them testable."""
    found = []
    for _ in range(count):
        relation, test = draw.choice(TESTS)
        a, b = draw.sample(GENES, 2)
        if relation != "correlates_with":
            b = "arm" if relation == "differs_by" else "death"
        found.append({"entity_a": a, "relation": relation, "entity_b": b,
                      "direction": draw.choice("+-"), "test": test, "group": []})  # fmt: skip
    return json.dumps(found)
