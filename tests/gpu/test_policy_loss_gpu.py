"""policy_loss on a GPU: numbers, no waits, graphs. Every body runs on the CPU row too."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # its problems are ours too

from conftest import CPU, Place, _ready
from logpi import policy_loss
from logpi.objectives import KL, DualClip, Objective, RolloutImportance
from logpi.testing import assert_all_within_budget, bits
from loss_problems import LEAVES, WITH_KERNELS, Problem, evaluate, in_float64, problem, stacked


@pytest.fixture(
    params=[CPU, pytest.param(Place("triton", "cuda"), id="triton", marks=pytest.mark.gpu)]
)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    return _ready(request.param)


ALL_PARTS: Problem = {"kl": KL(0.1), "entropy_coef": 0.01, "importance": RolloutImportance(max=1.5)}


@pytest.mark.parametrize("objective", WITH_KERNELS, ids=str)
def test_within_budget(place: Place, objective: Objective) -> None:
    options = ALL_PARTS | {"objective": objective}
    problems = [problem(seed, 16, 1500) for seed in range(2)]
    ours = stacked(evaluate(place.holds(p), place.row, **options) for p in problems)
    ours = {name: value.cpu() for name, value in ours.items()}
    yardstick = stacked(evaluate(p, "torch", **options) for p in problems)
    truth = stacked(evaluate(in_float64(p), "torch", **options) for p in problems)
    assert_all_within_budget(ours, yardstick, truth)


def step(p: Problem, row: str) -> list[Tensor]:
    leaves = {name: p[name].detach().requires_grad_() for name in LEAVES}
    given = {name: value for name, value in p.items() if name != "selection"} | leaves
    loss, metrics = policy_loss(**given, objective=DualClip(), backend=row, **ALL_PARTS)
    return [loss, *metrics.values(), *torch.autograd.grad(loss, list(leaves.values()))]


def test_the_host_waits_for_nothing(place: Place) -> None:
    p = place.holds(problem())
    p["num_tokens"] = p["loss_mask"].sum()
    step(p, place.row)
    with place.busy_stream(), place.without_sync():
        step(p, place.row)


def test_a_captured_graph_sees_new_values(place: Place) -> None:
    p = place.holds(problem())
    replay = place.recorded(lambda: step(p, place.row))
    replay()
    for seed in (1, 2):
        fresh: Any = place.holds(problem(seed))
        for name, value in fresh.items():
            p[name].copy_(value)
        ours, expected = replay(), step(fresh, place.row)
        place.synchronize()
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(ours, expected, strict=True))
