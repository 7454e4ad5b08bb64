"""covariance_clip on a GPU: the CPU row's masks, no wait, graphs that draw anew, the same bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from covariance_problems import KINDS, problem
from logpi import clip_cov_mask, covariances, kl_cov_mask
from logpi.testing import bits

if TYPE_CHECKING:
    from conftest import Place

SIZES = (1, 1023, 1025, 70_001)
WIDE = {"fraction": 0.01, "lower": 0.1, "upper": 50.0}  # more candidates than are wanted


def evaluate(p: Any, row: str, step: int | Tensor = 3) -> list[Tensor]:
    """All three functions, nothing read."""
    *given, exclude = p
    return [
        clip_cov_mask(*given, exclude=exclude, seed=7, step=step, backend=row, **WIDE),
        clip_cov_mask(*given, seed=7, step=step, backend=row),
        kl_cov_mask(*given, backend=row),
        covariances(*given, backend=row),
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_cpu_row_gives(place: Place, kind: str, size: int) -> None:
    p = problem(size, kind, seed=size)
    for ours, truth in zip(evaluate(place.holds(p), place.row), evaluate(p, "cpu"), strict=True):
        torch.testing.assert_close(ours.cpu(), truth, rtol=0, atol=0, equal_nan=True)


def test_nothing_waits(place: Place) -> None:
    p, step = place.holds(problem(5000)), place.holds(torch.tensor(3))
    evaluate(p, place.row, step)  # modules are loaded, Triton compiles
    with place.without_sync():
        evaluate(p, place.row, step)


def test_a_replayed_graph_sees_new_inputs_and_steps(place: Place) -> None:
    cases = [(problem(5000, seed=seed), torch.tensor(seed)) for seed in (1, 2)]
    p, step = place.holds(cases[0])
    replay = place.recorded(lambda: evaluate(p, place.row, step))
    for case in (cases[0], cases[1], cases[0]):
        for one, value in zip((*p, step), (*case[0], case[1]), strict=True):
            one.copy_(value)
        expected = evaluate(case[0], "cpu", case[1])
        for ours, truth in zip(replay(), expected, strict=True):
            assert torch.equal(bits(ours.cpu()), bits(truth))


def test_in_the_order_of_the_stream(place: Place) -> None:
    p, other = (place.holds(problem(5000, seed=seed)) for seed in (1, 2))
    expected = [one.clone() for one in evaluate(p, place.row)]
    with place.busy_stream():
        for one, value in zip(other, p, strict=True):
            one.copy_(value)
        found = evaluate(other, place.row)
    for ours, truth in zip(found, expected, strict=True):
        assert torch.equal(bits(ours), bits(truth))
