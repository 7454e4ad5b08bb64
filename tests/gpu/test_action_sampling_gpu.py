"""sample_action_tokens on a GPU: the definition's draws, no wait, graphs that draw anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from logpi import ActionCodec, ActionSample, sample_action_tokens, token_log_probs
from logpi.testing import assert_within_budget, bits

if TYPE_CHECKING:
    from conftest import Place

CODEC = ActionCodec(low=[-1.0] * 6 + [0.0], high=[2.0] * 7, mask=[True] * 6 + [False])


def problem(seed: int, rows: int = 64, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    logits = torch.full((rows, 7, 32064), torch.nan, dtype=dtype)
    logits[..., CODEC.support] = torch.randn(rows, 7, 256, generator=random).to(dtype) * 4
    return logits


def drawn(place: Place, logits: Tensor, **options: Any) -> list[Tensor]:
    options = {"codec": CODEC, "seed": 5, "step": 1, "return_entropy": True} | options
    return list(sample_action_tokens(logits, backend=place.row, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("temperature", [0.05, 1.0, 1.6])
def test_the_definitions_draws(place: Place, dtype: torch.dtype, temperature: float) -> None:
    """Of tokens and actions: all that is rounded before a token is drawn is rounded alike. A number
    goes through a logarithm, whose last bit is the library's."""
    logits = problem(1, dtype=dtype)
    ours = ActionSample(*drawn(place, place.holds(logits), temperature=temperature))
    truth = sample_action_tokens(
        logits.double(), codec=CODEC, seed=5, step=1, temperature=temperature, return_entropy=True,
        backend="torch",
    )  # fmt: skip
    yardstick = token_log_probs(
        logits, truth.token_ids, support=CODEC.support, temperature=temperature,
        return_entropy=True, backend="torch",
    )  # fmt: skip
    assert torch.equal(ours.token_ids.cpu(), truth.token_ids)
    assert torch.equal(bits(ours.actions.cpu()), bits(truth.actions))
    for name in ("log_probs", "entropy"):
        mine, theirs, true = (getattr(one, name) for one in (ours, yardstick, truth))
        assert_within_budget(mine.cpu(), theirs, true, name=name)


def test_any_batch(place: Place) -> None:
    logits, ids = place.holds(problem(2)), place.holds(torch.arange(448).view(64, 7) + 2**40)
    whole = drawn(place, logits, row_ids=ids)
    for part in (slice(3, 4), slice(10, 60)):
        for x, y in zip(drawn(place, logits[part], row_ids=ids[part]), whole, strict=True):
            assert torch.equal(bits(x), bits(y[part]))


def test_nothing_waits(place: Place) -> None:
    logits, step = place.holds(problem(3)), place.holds(torch.tensor(9))
    hidden, weight = (place.holds(torch.randn(*n, 64)) for n in ((64, 7), (32064,)))
    drawn(place, logits)  # modules are loaded, Triton compiles, the table is made
    drawn(place, hidden, weight=weight)
    with place.without_sync():
        drawn(place, logits, step=step)
        drawn(place, hidden, weight=weight, greedy=True)


def test_a_replayed_graph_draws_anew(place: Place) -> None:
    logits, step = place.holds(problem(4)), place.holds(torch.tensor(1))
    replay = place.recorded(lambda: drawn(place, logits, step=step))
    for number in (1, 2, 2**33):
        step.fill_(number)
        for x, y in zip(replay(), drawn(place, logits, step=number), strict=True):
            assert torch.equal(bits(x), bits(y))


def test_bad_rows_are_reported(gpu_place: Place) -> None:
    logits = problem(5)
    clean = drawn(gpu_place, gpu_place.holds(logits))
    logits[2, 3, 31800] = torch.nan
    logits[4, 0, 31744:] = -torch.inf
    token_ids, *fields = drawn(gpu_place, gpu_place.holds(logits))
    for at in ((2, 3), (4, 0)):
        assert token_ids[at] == 31744 + 128
        assert all(field[at].isnan() for field in fields)
        for field, before in zip(fields, clean[1:], strict=True):
            field[at] = before[at]
    for field, before in zip(fields, clean[1:], strict=True):
        assert torch.equal(bits(field), bits(before))


def test_a_million_draws(place: Place) -> None:
    draws = 1_000_000 if place.gpu else 100_000
    row = torch.linspace(-3.0, 3.0, 256).to(place.device)
    ids = drawn(place, row.expand(draws, 7, -1)[:, 0], codec=ActionCodec())[0]
    counts = torch.bincount(ids.cpu() - 31744, minlength=256)
    expected = torch.softmax(row.cpu().double(), -1) * draws
    chi = ((counts - expected).square() / expected).sum().item()
    assert abs(chi - 255) < 5 * (2 * 255) ** 0.5
