"""The loss of a critic, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from logpi import value_loss
from logpi.testing import bits

float64 = torch.float64
OLD = torch.tensor([[0.0, 0.0, 1.0], [2.0, -1.0, 0.0]], dtype=float64)
NEW = torch.tensor([[0.3, 0.9, 1.8], [1.0, -1.0, math.nan]], dtype=float64)
RETURNS = torch.tensor([[1.0, 2.0, 1.0], [0.0, 4.0, math.inf]], dtype=float64)
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
# V and the clamped V by hand: 0.3 0.3, 0.9 0.5, 1.8 1.5, 1.0 1.5, -1 -1; the larger square each
LARGER = [0.49, 2.25, 0.64, 2.25, 25.0]


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token-mean", sum(LARGER) / 5),
        ("token-sum", sum(LARGER)),
        ("seq-mean-token-mean", (sum(LARGER[:3]) / 3 + sum(LARGER[3:]) / 2) / 2),
    ],
)
def test_the_loss(aggregation: str, expected: float) -> None:
    values = NEW.clone().requires_grad_()
    loss, metrics = value_loss(values, OLD, RETURNS, MASK, aggregation=aggregation)
    assert loss.item() == pytest.approx(expected / 2, rel=1e-12)
    assert metrics["value_clip_fraction"].item() == pytest.approx(2 / 5)
    assert metrics["value"].item() == pytest.approx(3.0 / 5)
    (gradient,) = torch.autograd.grad(loss, values)
    clipped = torch.tensor([[0, 1, 0], [1, 0, 1]]).bool()
    assert torch.equal(gradient[clipped], torch.zeros(3, dtype=float64))
    assert (gradient[~clipped] != 0).all()


def test_gradients_are_those_of_the_loss() -> None:
    values = NEW.nan_to_num(0.0).requires_grad_()
    known = OLD, RETURNS.clamp(max=9.0), MASK
    assert torch.autograd.gradcheck(lambda v: value_loss(v, *known).loss, (values,))


def test_without_a_range_it_is_the_squared_error() -> None:
    loss, metrics = value_loss(NEW.float(), OLD, RETURNS, MASK, clip_range=None)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((0.49 + 1.21 + 0.64 + 1.0 + 25.0) / 10, rel=1e-6)
    assert loss.item() == pytest.approx(metrics["squared_error"].item() / 2)
    assert "value_clip_fraction" not in metrics


def test_nothing_to_learn_from() -> None:
    values = NEW.clone().requires_grad_()
    loss, metrics = value_loss(values, OLD, RETURNS, torch.zeros(2, 3))
    (gradient,) = torch.autograd.grad(loss, values)
    assert loss.item() == 0.0
    assert torch.equal(gradient, torch.zeros(2, 3, dtype=float64))
    assert all(metric.item() == 0.0 for metric in metrics.values())


def test_micro_batches_add_up() -> None:
    whole = value_loss(NEW, OLD, RETURNS, MASK).loss
    parts = [value_loss(*(x[b : b + 1] for x in (NEW, OLD, RETURNS, MASK)), num_tokens=5).loss
             for b in range(2)]  # fmt: skip
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-12)


def test_one_graph_with_the_bits_of_eager() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(value_loss, backend="aot_eager", fullgraph=True)
    arguments = NEW, OLD, RETURNS, MASK
    assert torch.equal(bits(compiled(*arguments).loss), bits(value_loss(*arguments).loss))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: value_loss(NEW, OLD[:1], RETURNS, MASK), ValueError, r"^old_values: expected sh"),
        (lambda: value_loss(NEW, OLD, RETURNS, MASK[0]), ValueError, r"^loss_mask: expected shape"),
        (lambda: value_loss(MASK, OLD, RETURNS, MASK), TypeError, r"^values: expected float32 or"),
        (
            lambda: value_loss(NEW, OLD, RETURNS, MASK, clip_range=0.0),
            ValueError,
            r"^clip_range: expected a finite number above 0, got 0.0$",
        ),
        (
            lambda: value_loss(NEW, OLD, RETURNS, MASK, num_sequences=2),
            ValueError,
            r"^num_sequences: expected None, as 'token-mean' does not use it, got 2$",
        ),
    ],
)
def test_errors_name_the_argument(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
