"""The definition of linear_policy_loss in plain torch: the log-probs, then the formulas."""

from __future__ import annotations

from logpi.ops.linear_log_probs import reference
from logpi.ops.linear_policy_loss.op import PolicyCall
from logpi.ops.policy_loss.loss import PolicyLoss, loss_of


def linear_policy_loss(call: PolicyCall) -> PolicyLoss:
    """Differentiable any number of times; `[N, V]` in memory several times over."""
    out = reference.linear_log_probs(call.linear)
    return loss_of(call.formula, out, call.tokens)
