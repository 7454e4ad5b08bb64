"""The loss of many tokens, and its metrics, as sums that may be made a part at a time.

loss = sum w (token_loss + kl.coef * kl - entropy_coef * entropy)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from logpi.core.metrics import Metrics
from logpi.ops.policy_loss.base import Objective, Tokens
from logpi.ops.policy_loss.kl import KL
from logpi.ops.token_log_probs import TokenLogProbs

Sums = dict[str, Tensor]  # float64, 0-d


class PolicyLoss(NamedTuple):
    """What a policy loss returns. The metrics are 0-d tensors on the device, without gradient."""

    loss: Tensor
    metrics: Metrics


class Formula(NamedTuple):
    """What is computed of a token."""

    objective: Objective
    kl: KL | None
    entropy_coef: float


def sums(
    formula: Formula, log_probs: Tensor, entropy: Tensor | None, tokens: Tokens
) -> tuple[Tensor, Sums]:
    """The loss of these tokens, float64 and differentiable; and what `metrics` makes metrics of.

    Sums are float64: how many parts there are shows in no digit of the loss.
    """
    objective, kl, entropy_coef = formula
    mask = tokens.mask

    def weighted(values: Tensor, weights: Tensor = tokens.weights) -> Tensor:
        return (weights * values).sum(dtype=torch.float64)

    weights = tokens.weights if tokens.policy_weights is None else tokens.policy_weights
    loss = policy = weighted(objective.losses(log_probs, tokens), weights)
    told = {} if entropy is None else {"entropy": entropy}
    if kl is not None:
        assert tokens.ref_log_probs is not None
        told["kl"] = kl.token_values(log_probs, tokens.ref_log_probs)
        loss = loss + kl.coef * weighted(told["kl"])
    if entropy_coef:
        assert entropy is not None
        loss = loss - entropy_coef * weighted(entropy)
    with torch.no_grad():
        told |= objective.told(log_probs, tokens)
        totals = sums_of(told, mask)
        totals["tokens"] = mask.sum(dtype=torch.float64)
    return loss, {"policy_loss": policy.detach(), **totals}


def sums_of(told: dict[str, Tensor], mask: Tensor) -> Sums:
    return {k: v.where(mask, 0.0).sum(dtype=torch.float64) for k, v in told.items()}


def loss_of(formula: Formula, out: TokenLogProbs, tokens: Tokens) -> PolicyLoss:
    """Of log-probs and entropies of all tokens at once."""
    assert out.entropy is not None
    loss, totals = sums(formula, out.log_probs.reshape(-1), out.entropy.reshape(-1), tokens)
    dtype = tokens.weights.dtype
    return PolicyLoss(loss.to(dtype), metrics(totals, dtype))


def added(total: Sums, more: Sums) -> Sums:
    return {name: total[name] + more[name] for name in total} if total else more


def metrics(total: Sums, dtype: torch.dtype) -> Metrics:
    """`policy_loss` as it was weighted, everything else as a mean over the tokens."""
    tokens = total["tokens"].clamp(min=1)
    means = {k: v / tokens for k, v in total.items() if k not in ("policy_loss", "tokens")}
    named = {"policy_loss": total["policy_loss"], **means}
    return Metrics({k: v.to(dtype) for k, v in named.items()})
