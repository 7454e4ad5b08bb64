"""What a token weighs in the loss, known before any log-probability is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from logpi.core import checks

AGGREGATIONS = (
    "token-mean",
    "token-sum",
    "seq-mean-token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
)
Count = int | float | Tensor | None


def token_weights(
    loss_mask: Tensor,  # [B, T]
    aggregation: str,
    *,
    num_tokens: Count = None,
    num_sequences: Count = None,
    horizon: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # [B, T]
    """`sequence_weights`, one for each token, in `dtype`; exactly 0 outside the mask."""
    weights = sequence_weights(
        loss_mask, aggregation, num_tokens=num_tokens, num_sequences=num_sequences, horizon=horizon
    )
    return weights.to(dtype).expand_as(loss_mask).where(loss_mask.bool(), 0.0)


def sequence_weights(
    loss_mask: Tensor,  # [B, T]
    aggregation: str,
    *,
    num_tokens: Count = None,
    num_sequences: Count = None,
    horizon: float | None = None,
) -> Tensor:  # [B, 1] or [1, 1]
    """The weights w with which a loss is `sum w * token_loss` over the tokens of the mask; float64.

        token-mean                1 / num_tokens
        token-sum                 1
        seq-mean-token-sum        1 / num_sequences
        seq-mean-token-mean       1 / (tokens of the sequence * num_sequences)
        seq-mean-token-sum-norm   1 / (horizon * num_sequences)

    Args:
        loss_mask: `[B, T]` bool (or numbers: 0 is False).
        aggregation: one of the five above.
        num_tokens: of "token-mean" alone: what to divide by instead of the tokens of this mask. A
            number, or a 0-d tensor on the mask's device, which nothing reads on the host. Over
            micro-batches: the tokens of all of them. Over ranks whose gradients are
            averaged: the tokens of all, divided by the number of ranks.
        num_sequences: the same for the three "seq-mean" ones. Of this mask are counted the
            sequences that have a token.
        horizon: of "seq-mean-token-sum-norm" alone; None: T.

    Raises:
        ValueError: an unknown aggregation, a shape, or a count that the aggregation does not use.
    """
    if aggregation not in AGGREGATIONS:
        known = ", ".join(repr(name) for name in AGGREGATIONS)
        raise ValueError(f"aggregation: expected one of {known}, got {aggregation!r}")
    checks.tensor("loss_mask", loss_mask)
    if loss_mask.dim() != 2:
        raise ValueError(f"loss_mask: expected shape [B, T], got {tuple(loss_mask.shape)}")
    by_sequence, by_norm = aggregation.startswith("seq"), aggregation.endswith("norm")
    _used("num_tokens", num_tokens, aggregation, aggregation == "token-mean")
    _used("num_sequences", num_sequences, aggregation, by_sequence)
    _used("horizon", horizon, aggregation, by_norm)
    mask = loss_mask.bool()
    device, wide = mask.device, torch.float64  # rounded once, at the end
    if aggregation == "token-mean" and num_tokens is None:  # every call's, and in three steps
        # of a bool tensor count_nonzero takes two thirds of sum's time on a CPU
        return torch.count_nonzero(mask).clamp_(min=1).to(wide).reciprocal_().view(1, 1)
    divisor = torch.ones(1, 1, dtype=wide, device=device)
    if aggregation == "token-mean":
        divisor = divisor * _count("num_tokens", num_tokens, mask)
    if by_sequence:
        divisor = divisor * _count("num_sequences", num_sequences, mask.any(-1))
    if aggregation == "seq-mean-token-mean":
        divisor = divisor * mask.sum(-1, keepdim=True).clamp(min=1)
    if by_norm:
        if horizon is not None:
            checks.positive("horizon", horizon)
        divisor = divisor * (mask.shape[-1] if horizon is None else horizon)
    return divisor.reciprocal()


def _used(name: str, value: Count, aggregation: str, is_used: bool) -> None:
    if value is not None and not is_used:
        raise ValueError(f"{name}: expected None, as {aggregation!r} does not use it, got {value}")


def _count(name: str, given: Count, counted: Tensor) -> Tensor | float:
    """What was given, or how many are True; at least 1, so that nothing at all weighs nothing."""
    if given is None:
        return torch.count_nonzero(counted).clamp(min=1)
    if not isinstance(given, Tensor):
        checks.positive(name, given)
        return given
    if given.dim():
        raise ValueError(f"{name}: expected a number or a 0-d tensor, got {tuple(given.shape)}")
    checks.device(name, given, counted.device)
    if torch.compiler.is_compiling():  # a value would break its graph
        return given.detach()
    if given.device.type == "cpu" and not 0 < given.item() < math.inf:
        raise ValueError(f"{name}: expected a finite number above 0, got {given.item()}")
    return given.detach()
