"""What a token weighs: the five aggregations, and whose counts they divide by."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from logpi.core.masked import AGGREGATIONS, token_weights

# Two sequences of 4 tokens, the last one masked, with losses 0..7.
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
LOSSES = torch.arange(8.0, dtype=torch.float64).view(2, 4)
EXPECTED = {
    "token-mean": 3.0,
    "token-sum": 21.0,
    "seq-mean-token-sum": 10.5,
    "seq-mean-token-mean": 3.25,
    "seq-mean-token-sum-norm": 2.625,
}


def total(mask: torch.Tensor, aggregation: str, **options: Any) -> float:
    weights = token_weights(mask, aggregation, dtype=torch.float64, **options)
    return float((weights * LOSSES[: len(mask)]).sum())


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_by_hand(aggregation: str) -> None:
    assert total(MASK, aggregation) == pytest.approx(EXPECTED[aggregation], rel=1e-15)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_sequence_without_tokens_does_not_count(aggregation: str) -> None:
    padded = torch.cat((MASK, torch.zeros(3, 4)))
    weights = token_weights(padded, aggregation)
    assert torch.equal(weights[:2], token_weights(MASK, aggregation))
    assert not weights[2:].any()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_no_token_at_all_weighs_nothing(aggregation: str) -> None:
    weights = token_weights(torch.zeros(2, 3, dtype=torch.bool), aggregation)
    assert torch.equal(weights, torch.zeros(2, 3))


@pytest.mark.parametrize("kind", [int, float, torch.tensor])
@pytest.mark.parametrize("aggregation", [a for a in AGGREGATIONS if a != "token-sum"])
def test_micro_batches_add_up_to_the_batch(aggregation: str, kind: Any) -> None:
    """Counts of the whole are what makes a part's loss a part of the whole's."""
    counts = {"num_tokens": kind(7)} if aggregation == "token-mean" else {"num_sequences": kind(2)}
    parts = [token_weights(row[None], aggregation, **counts) for row in MASK]
    assert torch.equal(torch.cat(parts), token_weights(MASK, aggregation))


def test_a_horizon_of_ones_own() -> None:
    assert total(MASK, "seq-mean-token-sum-norm", horizon=8) == pytest.approx(10.5 / 8)


@pytest.mark.parametrize(
    ("aggregation", "options", "message"),
    [
        ("mean", {}, r"aggregation: expected one of 'token-mean', .*, got 'mean'"),
        ("token-sum", {"num_tokens": 3}, r"num_tokens: expected None, as 'token-sum' does not"),
        ("token-mean", {"num_sequences": 3}, r"num_sequences: expected None, as 'token-mean'"),
        ("token-mean", {"horizon": 3}, r"horizon: expected None, as 'token-mean' does not use it"),
        ("token-mean", {"num_tokens": 0}, r"num_tokens: expected a finite number above 0, got 0"),
        (
            "token-mean",
            {"num_tokens": torch.tensor(0)},
            r"num_tokens: expected a finite number above 0, got 0",
        ),
        (
            "token-mean",
            {"num_tokens": torch.ones(1)},
            r"num_tokens: expected a number or a 0-d tensor, got \(1,\)",
        ),
    ],
)
def test_bad_arguments(aggregation: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_weights(MASK, aggregation, **options)


def test_a_mask_is_a_matrix() -> None:
    with pytest.raises(ValueError, match=r"loss_mask: expected shape \[B, T\], got \(4,\)"):
        token_weights(MASK[0], "token-mean")
