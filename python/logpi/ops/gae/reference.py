"""The definition of gae: a linear recurrence, by doubling. No loop over tokens."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from logpi.ops.gae.op import Call, Gae


def forward(call: Call) -> Gae:
    mask, gamma, lam = call.loss_mask, call.gamma, call.lam
    rewards, values = (x.double().where(mask, 0.0) for x in (call.rewards, call.values))
    # x_t = gamma ((1 - lam) V_t + lam G_t) is what a token hands to the one before it, G_t = r_t +
    # x_(t+1). A masked token hands on what it was given.
    slope = mask.double() * (gamma * lam - 1) + 1
    handed = _before(recurrence(slope, gamma * (1 - lam) * values + gamma * lam * rewards), 1)
    returns = rewards + handed
    advantages = returns - values
    if call.whiten:
        advantages = whiten(advantages, mask)
    dtype = call.rewards.dtype
    return Gae(advantages.where(mask, 0.0).to(dtype), returns.where(mask, 0.0).to(dtype))


def recurrence(slope: Tensor, offset: Tensor) -> Tensor:
    """x_t = slope_t x_(t+1) + offset_t along the last dim, 0 behind its end: log2(T) steps."""
    step = 1
    while step < offset.shape[-1]:  # both span `step` tokens so far
        offset = offset + slope * _before(offset, step)
        slope = slope * _before(slope, step)
        step *= 2
    return offset


def _before(x: Tensor, step: int) -> Tensor:
    """x_(t + step) at t, 0 behind the end."""
    return pad(x[..., step:], (0, step))


def whiten(x: Tensor, counts: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) over everything, an element counted as often as `counts` says
    (a mask: once or not at all), var unbiased. 0 where an element does not count or one does."""
    counts = counts.double()
    live, total = counts > 0, counts.sum()
    mean = (counts * x.where(live, 0.0)).sum() / total.clamp(min=1)
    centered = (x - mean).where(live, 0.0)
    variance = (counts * centered.square()).sum() / (total - 1).clamp(min=1)
    return centered * (variance + EPSILON).rsqrt()


EPSILON = 1e-8  # of the variance
