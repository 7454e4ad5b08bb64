"""gae and the advantages on a GPU: numbers, waits, graphs. Each body runs on a CPU too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from logpi import advantages
from logpi.ops.gae import BACKENDS
from logpi.testing import assert_within_budget, bits

if TYPE_CHECKING:
    from conftest import Place

B, T = 12, 3001  # three blocks of a row, the last one ragged


def problem(seed: int = 0) -> list[Tensor]:
    """Rewards, values, mask, group ids, log-probs, collisions."""
    g = torch.Generator().manual_seed(seed)
    rewards, values, log_probs = (torch.randn(B, T, generator=g) for _ in range(3))
    mask = torch.rand(B, T, generator=g) < 0.7
    ids = torch.randint(4, (B,), generator=g)
    return [rewards, values, mask, ids, -log_probs.abs(), torch.rand(B, T, generator=g)]


def critic(place: Place, inputs: list[Tensor], whiten: bool) -> list[Tensor]:
    if place.row not in {row.name for row in BACKENDS}:
        pytest.skip(f"gae has no row {place.row}")
    return [*advantages.gae(*inputs[:3], gamma=0.99, lam=0.95, whiten=whiten, backend=place.row)]


def every(inputs: list[Tensor]) -> list[Tensor]:
    rewards, _, mask, ids, log_probs, collision = inputs
    first, a = rewards[:, 0].contiguous(), advantages
    return [
        *(f(first, ids) for f in (a.group_normalized, a.group_centered, a.rloo, a.gpg)),
        a.pass_at_k(first, ids),
        a.opo(first, ids, mask),
        a.remax(first, first * 0.5),
        a.reinforce_plus_plus_baseline(first, ids, mask),
        a.gdpo(rewards[:, :2], ids, mask),
        a.optimal_token_baseline(rewards, ids, log_probs, collision, mask),
    ]


@pytest.mark.parametrize("whiten", [False, True])
def test_numbers(place: Place, whiten: bool) -> None:
    inputs = problem()
    ours = critic(place, place.holds(inputs), whiten)
    wide = [inputs[0].double(), inputs[1].double(), inputs[2]]
    truth = advantages.gae(*wide, gamma=0.99, lam=0.95, whiten=whiten)
    for x, true in zip(ours, truth, strict=True):
        assert_within_budget(x.cpu(), true.float(), true, ulps=1)


@pytest.mark.parametrize("whiten", [False, True])
def test_a_replayed_graph_sees_new_inputs_and_nobody_waits(place: Place, whiten: bool) -> None:
    inputs = place.holds(problem())
    critic(place, inputs, whiten)  # compiles
    with place.without_sync():
        critic(place, inputs, whiten)
    replay = place.recorded(lambda: critic(place, inputs, whiten))
    for seed in (1, 2):
        fresh = place.holds(problem(seed))
        for held, new in zip(inputs, fresh, strict=True):
            held.copy_(new)
        for x, y in zip(replay(), critic(place, fresh, whiten), strict=True):
            assert torch.equal(bits(x), bits(y))


def test_advantages_of_groups(place: Place) -> None:
    if place.row == "cuda":
        pytest.skip("the same torch code as beside the row triton")
    inputs = place.holds(problem())
    every(inputs)
    with place.without_sync():
        every(inputs)
    replay = place.recorded(lambda: every(inputs))
    for held, new in zip(inputs, place.holds(problem(3)), strict=True):
        held.copy_(new)
    for x, y in zip(replay(), every(problem(3)), strict=True):
        torch.testing.assert_close(x.cpu(), y, rtol=1e-6, atol=1e-6)
