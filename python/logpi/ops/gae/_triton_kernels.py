# mypy: ignore-errors
# Triton's language is not Python's: its annotations are values.
"""The Triton kernels of gae: one program scans a row, so that its bits know nothing of the others.
Float64 throughout, rounded once."""

import triton
import triton.language as tl

from logpi.ops.gae import reference
from logpi.ops.token_log_probs._triton_kernels import F32, I32, kernel

EPSILON = tl.constexpr(reference.EPSILON)


@triton.jit
def then(slope, offset, next_slope, next_offset):
    """x -> slope x + offset, and then the next of them."""
    return slope * next_slope, next_slope * offset + next_offset


@triton.jit
def merge(count, mean, square, n, m, s):
    """Moments of two sets, as those of both: how many, their mean, sum of squares about it."""
    total = tl.maximum(count + n, 1.0)
    step = m - mean
    return count + n, mean + step * (n / total), square + s + step * step * (count * n / total)


@kernel
def scan_kernel(
    rewards, values, loss_mask, advantages, returns, moments, num_tokens: I32,
    decay_high: F32, decay_low: F32, ahead_high: F32, ahead_low: F32, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row of `[B, T]`; with `moments`, also (count, mean, square) of its advantages.

    What a token hands to the one before it is x_t = ahead V_t + decay (r_t + x_(t+1)); a masked
    token hands on what it was given. Lanes count tokens from the row's end, so that a scan goes
    forward (a reversed one shuffles all lanes twice); the lane of t scans t + 1, to find x_(t+1).
    """
    start = tl.program_id(0).to(tl.int64) * num_tokens
    decay = tl.zeros([], tl.float64) + decay_high + decay_low
    ahead = tl.zeros([], tl.float64) + ahead_high + ahead_low
    lanes = tl.arange(0, BLOCK)
    behind = tl.zeros([], tl.float64)  # what the block behind this one hands over
    count, mean, square = behind, behind, behind
    for back in range(0, num_tokens, BLOCK):
        at = num_tokens - 1 - back - lanes
        there = start + at + 1
        inside = (at + 1 >= 0) & (at + 1 < num_tokens)
        live = tl.load(loss_mask + there, mask=inside, other=0) != 0
        r = tl.load(rewards + there, mask=live, other=0.0).to(tl.float64)
        v = tl.load(values + there, mask=live, other=0.0).to(tl.float64)
        slope = tl.where(live, decay, 1.0)
        slope, offset = tl.associative_scan((slope, ahead * v + decay * r), 0, then)
        handed = slope * behind + offset
        behind = tl.sum(tl.where(lanes == BLOCK - 1, handed, 0.0), 0)

        there, inside = start + at, at >= 0
        live = tl.load(loss_mask + there, mask=inside, other=0) != 0
        g = tl.load(rewards + there, mask=live, other=0.0).to(tl.float64) + handed
        a = g - tl.load(values + there, mask=live, other=0.0).to(tl.float64)
        g, a = tl.where(live, g, 0.0), tl.where(live, a, 0.0)
        tl.store(returns + there, g.to(tl.float32), mask=inside)
        tl.store(advantages + there, a.to(advantages.dtype.element_ty), mask=inside)
        if moments is not None:
            n = tl.sum(live.to(tl.float64), 0)
            m = tl.sum(a, 0) / tl.maximum(n, 1.0)
            apart = tl.where(live, a - m, 0.0)
            s = tl.sum(apart * apart, 0)
            count, mean, square = merge(count, mean, square, n, m, s)
    if moments is not None:
        moments += tl.program_id(0).to(tl.int64) * 3
        tl.store(moments, count)
        tl.store(moments + 1, mean)
        tl.store(moments + 2, square)


@kernel
def whiten_kernel(
    raw, loss_mask, moments, advantages, num_rows: I32, num_tokens: I32, BLOCK: tl.constexpr
):
    """A block of a row. Every program adds up the rows' moments for itself, in the same order."""
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros([], tl.float64)
    mean, square = total, total
    for first in range(0, num_rows, BLOCK):
        rows = first + lanes
        n = tl.load(moments + rows * 3, mask=rows < num_rows, other=0.0)
        m = tl.load(moments + rows * 3 + 1, mask=rows < num_rows, other=0.0)
        s = tl.load(moments + rows * 3 + 2, mask=rows < num_rows, other=0.0)
        here = tl.sum(n, 0)
        middle = tl.sum(n * m, 0) / tl.maximum(here, 1.0)
        s = tl.sum(s + n * (m - middle) * (m - middle), 0)
        total, mean, square = merge(total, mean, square, here, middle, s)
    scale = 1.0 / tl.sqrt(square / tl.maximum(total - 1.0, 1.0) + EPSILON)

    at = tl.program_id(1) * BLOCK + lanes
    inside = at < num_tokens
    there = tl.program_id(0).to(tl.int64) * num_tokens + at
    live = tl.load(loss_mask + there, mask=inside, other=0) != 0
    a = tl.load(raw + there, mask=live, other=0.0)
    tl.store(
        advantages + there, tl.where(live, (a - mean) * scale, 0.0).to(tl.float32), mask=inside
    )
