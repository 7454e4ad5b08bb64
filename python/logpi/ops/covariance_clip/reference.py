"""The equations as they stand in op.py: the row `torch`, and what the kernels are judged by."""

from __future__ import annotations

import torch
from torch import Tensor

from logpi.core.draws import random_words
from logpi.ops.covariance_clip.op import CLIP, COVARIANCES, Call

_LIMBS, _BITS, _LOWEST = 32, 8, -150  # of an exact sum: limb i counts units of 2^(8 i - 150)


def evaluate(call: Call) -> Tensor:
    """`[..]`: the covariances, or True for the tokens that the rule takes."""
    mask, shape = call.loss_mask.flatten(), call.log_probs.shape
    c = covariances(call.log_probs.flatten(), call.advantages.flatten(), mask)
    if call.rule == COVARIANCES:
        return c.view(shape)
    count = mask.sum()
    if call.rule == CLIP:
        takes_part = (c > call.lower) & (c < call.upper) & mask
        if call.exclude is not None:
            takes_part = takes_part & ~call.exclude.flatten()
        order = random_keys(call, mask.cumsum(0) - 1).argsort(stable=True)
    else:
        takes_part = mask
        order = c.argsort(stable=True, descending=True)  # NaN first
    order = order[takes_part[order].logical_not().byte().argsort(stable=True)]
    wanted = (count.double() * call.fraction).long().clamp(min=1)
    chosen = torch.arange(len(c), device=c.device) < wanted.minimum(takes_part.sum())
    return torch.zeros_like(mask).scatter(0, order, chosen).view(shape)


def covariances(log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """c, and 0 where masked; all `[N]`."""
    c = (advantages - mean(advantages, mask)) * (log_probs - mean(log_probs, mask))
    return c.where(mask, 0.0)


def mean(x: Tensor, mask: Tensor) -> Tensor:
    """Over the tokens of the mask, 0 if there are none; of float32 the exact sum, rounded."""
    total = x.where(mask, 0.0)
    wide = total.sum() if x.dtype == torch.float64 else exact_sum(total)
    return (wide / mask.sum().clamp(min=1)).to(x.dtype)


def exact_sum(x: Tensor) -> Tensor:
    """The sum of float32 in float64, from integers that hold it whole: no order of addition shows.

    A float is m 2^(e - 150), m an integer of 24 bits and a sign. Limb e // 8 gets m 2^(e % 8);
    carries then make the limbs digits of [-128, 128), which are added upwards.
    """
    bits = x.contiguous().view(torch.int32).long()
    biased = bits >> 23 & 255
    exponent = biased.clamp(min=1)
    magnitude = (bits & 0x7FFFFF | (biased > 0).long() << 23) << exponent % _BITS
    value = torch.where(bits < 0, -magnitude, magnitude).where(biased < 255, 0)
    limbs = torch.zeros(_LIMBS, dtype=torch.int64, device=x.device)
    limbs.index_add_(0, exponent // _BITS, value)
    carry, total = limbs.new_zeros(()), torch.zeros((), dtype=torch.float64, device=x.device)
    for at, limb in enumerate(limbs):
        limb = limb + carry
        carry = limb + 128 >> _BITS if at + 1 < _LIMBS else torch.zeros_like(carry)
        total = total + (limb - (carry << _BITS)).double() * 2.0 ** (_BITS * at + _LOWEST)
    unbounded = x.where(biased == 255, 0.0).sum()  # infinite or NaN, else 0
    return total + unbounded.double()


def random_keys(call: Call, index: Tensor) -> Tensor:
    """`[N]` int64 in [0, 2^31): bits 1 to 31 of the first word of Philox4x32-10."""
    step = call.step if call.step_at is None else call.step_at
    return random_words(call.seed, step, index)[0] >> 1
