"""The loss of a critic."""

from __future__ import annotations

import torch
from torch import Tensor

from logpi.core import checks
from logpi.core.masked import Count, token_weights
from logpi.core.metrics import Metrics
from logpi.ops.policy_loss.loss import PolicyLoss


def value_loss(
    values: Tensor,  # [B, T]
    old_values: Tensor,  # [B, T]
    returns: Tensor,  # [B, T]
    loss_mask: Tensor,  # [B, T]
    *,
    clip_range: float | None = 0.5,
    aggregation: str = "token-mean",
    num_tokens: Count = None,
    num_sequences: Count = None,
) -> PolicyLoss:
    """The squared error of a critic's values, clipped around those before the update.

        loss = sum w max((V - G)^2, (clamp(V, V_old - clip_range, V_old + clip_range) - G)^2) / 2

    Args:
        values: `[B, T]` float. Gradient flows; it is 0 where the clamped error is the larger one.
        old_values: `[B, T]` of the critic before the update.
        returns: `[B, T]`, as `logpi.advantages.gae` has them.
        loss_mask: `[B, T]` bool (or numbers: 0 is False). Tokens where it is False are never read.
        clip_range: how far a value may move; None: as far as it likes.
        aggregation, num_tokens, num_sequences: as in `logpi.core.masked.token_weights`, which
            makes w of them.

    Returns:
        `PolicyLoss(loss, metrics)`: 0-d tensors, float32 (float64 for float64 values). Means over
        the tokens: "value", "squared_error" (of the values as they are) and, with a clip_range,
        "value_clip_fraction". Without a token all are 0.

    Raises:
        ValueError: a shape or value.  TypeError: a dtype.
    Source: docs/papers.md.
    """
    checks.dtype("values", values, *checks.FLOATS)
    for name, x in (("old_values", old_values), ("returns", returns)):
        checks.dtype(name, x, *checks.FLOATS)
        checks.shape(name, x, values.shape)
        checks.device(name, x, values.device)
    checks.tensor("loss_mask", loss_mask)
    checks.shape("loss_mask", loss_mask, values.shape)
    checks.device("loss_mask", loss_mask, values.device)
    if clip_range is not None:
        checks.positive("clip_range", clip_range)
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    weights = token_weights(
        loss_mask, aggregation, num_tokens=num_tokens, num_sequences=num_sequences, dtype=dtype
    )
    mask = loss_mask.bool()
    v, old, g = (
        x.to(dtype).where(mask, 0.0) for x in (values, old_values.detach(), returns.detach())
    )
    error = larger = (v - g).square()
    told = {"value": v, "squared_error": error}
    if clip_range is not None:
        clamped = (v.clamp(old - clip_range, old + clip_range) - g).square()
        larger = torch.maximum(error, clamped)
        told["value_clip_fraction"] = (clamped > error).to(dtype)
    loss = (weights * larger).sum(dtype=torch.float64) / 2
    tokens = mask.sum().clamp(min=1)
    means = {k: x.detach().sum(dtype=torch.float64) / tokens for k, x in told.items()}
    metrics = Metrics({name: mean.to(dtype) for name, mean in means.items()})
    return PolicyLoss(loss.to(dtype), metrics)
