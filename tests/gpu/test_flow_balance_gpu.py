"""flow_balance_loss on a GPU: numbers, no wait, graphs that see new inputs, the same bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from flow_problems import ARGUMENTS, LEAVES, call, evaluate, in_float64, problem
from logpi.ops.flow_balance.op import METRICS
from logpi.testing import assert_all_within_budget, bits

if TYPE_CHECKING:
    from conftest import Place


def step(p: dict[str, Any], row: str, **options: Any) -> list[Tensor]:
    """Loss, metrics and gradients, none of them read."""
    loss, metrics = call(p, backend=row, **options)
    return [loss, *metrics.values(), *torch.autograd.grad(loss, [p[name] for name in LEAVES])]


def on(place: Place, p: dict[str, Tensor]) -> dict[str, Any]:
    there: dict[str, Any] = place.holds(p)
    for name in LEAVES:
        there[name].requires_grad_()
    return there


@pytest.mark.parametrize("shape", [(1, 1), (5, 67), (300, 40), (130, 1025), (3, 40_000)])
@pytest.mark.parametrize("drift", [0.002, 0.5])
def test_within_the_budget(place: Place, shape: tuple[int, int], drift: float) -> None:
    p = problem(1, *shape, drift=drift)
    names = ["loss", *METRICS, *(f"gradient of {name}" for name in LEAVES)]
    ours = dict(zip(names, (t.cpu() for t in step(on(place, p), place.row)), strict=True))
    yardstick = evaluate(p, "torch", upstream=1.0)
    truth = evaluate(in_float64(p), "torch", upstream=1.0)
    assert_all_within_budget({k: v.detach() for k, v in ours.items()}, yardstick, truth)


def test_nothing_waits(place: Place) -> None:
    p = on(place, problem(2))
    count = place.holds(torch.tensor(7.0))
    step(p, place.row)  # modules are loaded, Triton compiles
    with place.without_sync():
        step(p, place.row)
        step(p, place.row, num_sequences=count)


def test_a_replayed_graph_sees_new_inputs(place: Place) -> None:
    one, other = problem(3), problem(4)
    p = on(place, one)
    replay = place.recorded(lambda: step(p, place.row))
    for values in (one, other, one):
        with torch.no_grad():
            for name in ARGUMENTS:
                p[name].copy_(values[name])
        expected = [t.detach().clone() for t in step(p, place.row)]
        for ours, truth in zip(replay(), expected, strict=True):
            assert torch.equal(bits(ours), bits(truth))


def test_the_same_bits_each_time(place: Place) -> None:
    p = on(place, problem(5, 64, 5000, drift=0.003))
    first = step(p, place.row)
    for _ in range(20):
        for ours, before in zip(step(p, place.row), first, strict=True):
            assert torch.equal(bits(ours), bits(before))


def test_in_the_order_of_the_stream(place: Place) -> None:
    p = on(place, problem(6))
    expected = [t.detach().clone() for t in step(p, place.row)]
    other = on(place, problem(7))
    with place.busy_stream(), torch.no_grad():
        for name in ARGUMENTS:
            other[name].copy_(p[name])
        with torch.enable_grad():
            ours = step(other, place.row)
    for one, truth in zip(ours, expected, strict=True):
        assert torch.equal(bits(one), bits(truth))
