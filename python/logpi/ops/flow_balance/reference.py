"""The definition of flow_balance_loss in plain torch: differentiable any number of times, float64
too, and the oracle of every other row. Sums are float64 whatever the input."""

from __future__ import annotations

import torch
from torch import Tensor

from logpi.ops.flow_balance.op import Call


def flow_balance_loss(call: Call) -> tuple[Tensor, Tensor]:
    """The loss, and the metrics `[10]` in the order of `METRICS`."""
    wide, dtype, mask = torch.float64, call.log_probs.dtype, call.loss_mask
    tokens = mask.sum(-1)

    def total(values: Tensor) -> Tensor:
        return values.where(mask, 0.0).sum(-1, dtype=wide)  # not times the mask: NaN would stay

    log_probs = total(call.log_probs)
    ref, old = total(call.ref_log_probs.detach()), total(call.old_log_probs.detach())
    log_z, length = call.log_z.to(wide), tokens.clamp(min=1)
    reward = call.rewards.detach().where(tokens > 0, 0.0).to(wide) * call.reward_scale

    residual = log_z + (log_probs - ref) / length - reward
    drift = (log_probs - old).detach()
    log_low, log_high = call.log_bounds()
    # The exponent is bounded, not the exponential: nothing overflows on the way.
    weight = drift.clamp(log_low, log_high).exp()
    weight = weight.masked_fill(drift >= log_high, call.high)
    weight = weight.masked_fill(drift <= log_low, call.low)
    loss = (weight * residual.square()).sum() / call.divided_by()

    with torch.no_grad():
        cut = ((drift > log_high) | (drift < log_low)).to(wide)
        log_prob, old_log_prob, ref_log_prob, ppo_kl, ref_kl = (
            values.sum() / tokens.sum().clamp(min=1)
            for values in (log_probs, old, ref, old - log_probs, ref - log_probs)
        )
        a_sequence = (log_z, reward, residual, weight, cut)
        means = (values.sum() / max(len(tokens), 1) for values in a_sequence)
        metrics = torch.stack((log_prob, old_log_prob, ref_log_prob, ppo_kl, ref_kl, *means))
    return loss.to(dtype), metrics.to(dtype)
