"""The definition of policy_loss in plain torch: the formulas, weighted and summed."""

from __future__ import annotations

from logpi.ops.policy_loss.base import Tokens
from logpi.ops.policy_loss.loss import Formula, PolicyLoss, metrics, sums
from logpi.ops.policy_loss.op import Call


def policy_loss(call: Call) -> PolicyLoss:
    """Differentiable any number of times; each formula's steps are `[B, T]` in memory."""
    mask, dtype = call.loss_mask, call.log_probs.dtype
    weights = call.weights.to(dtype).expand_as(mask).where(mask, 0.0)
    policy_weights = None
    if call.importance is not None:
        policy_weights = (call.weights * call.importance).to(dtype).where(mask, 0.0)
    ref, entropy = call.ref_log_probs, call.entropy
    tokens = Tokens(
        call.old_log_probs.where(mask, 0.0),  # not times 0: NaN would stay
        call.advantages.expand_as(mask).where(mask, 0.0),
        None if ref is None else ref.where(mask, 0.0),
        weights,
        mask,
        policy_weights,
        None if call.selection is None else call.selection & mask,
    )
    formula = Formula(call.objective, call.kl, call.entropy_coef)
    entropy = None if entropy is None else entropy.where(mask, 0.0)
    loss, totals = sums(formula, call.log_probs.where(mask, 0.0), entropy, tokens)
    return PolicyLoss(loss.to(dtype), metrics(totals, dtype))
