# mypy: ignore-errors
# Triton's language is not Python's: its annotations are values.
"""The Triton kernel: a program a row, in float64, operation by operation as reference.py has it."""

import triton
import triton.language as tl

from logpi.core._triton_draws import uniform
from logpi.ops.action_sampling import reference
from logpi.ops.token_log_probs._triton_kernels import I32, I64, kernel, row_start

F64 = tl.float64
LOG2E = tl.constexpr(reference.LOG2E)
LN2 = tl.constexpr(reference.LN2)
ROUND = tl.constexpr(reference.ROUND)
LOWEST = tl.constexpr(reference.LOWEST)
C1, C2, C3, C4, C5, C6, C7 = (tl.constexpr(c) for c in reference.EXP2[1:])
SQRT_HALF = tl.constexpr(0x3FE6A09E667F3BCD)  # the bits of 0.707..


@triton.jit
def exp2(t):
    """reference.exp2: each operation rounded, none fused."""
    rounded = t + ROUND
    f = t - (rounded - ROUND)
    p = C7 * f + C6
    p = p * f + C5
    p = p * f + C4
    p = p * f + C3
    p = p * f + C2
    p = p * f + C1
    p = p * f + 1.0
    bits = p.to(tl.int64, bitcast=True) + (rounded.to(tl.int64, bitcast=True) << 52)
    return bits.to(tl.float64, bitcast=True)


@triton.jit
def log1p(x):
    """Of float64 x >= 0, to 1e-12: 1 + x = 2^k (1 + f), 1 + f in [0.7, 1.42]."""
    bits = (1.0 + x).to(tl.int64, bitcast=True)
    k = (bits - SQRT_HALF) >> 52
    down = ((1023 - k) << 52).to(tl.float64, bitcast=True)  # 2^-k
    f = x * down + (down - 1.0)
    s = f / (2.0 + f)
    z = s * s
    p = z * (1 / 13 + z * (1 / 15 + z * (1 / 17)))
    p = z * (1 / 5 + z * (1 / 7 + z * (1 / 9 + z * (1 / 11 + p))))
    return k.to(tl.float64) * LN2 + 2.0 * (s + s * (z * (1 / 3) + z * p))


@kernel
def sample_kernel(
    logits, size1: I64, size2: I64, size3: I64, stride0: I64, stride1: I64, stride2: I64,
    stride3: I64, num_bins: I32, grid: F64, temperatures, temperature: F64, seed: I64, step: I64,
    step_at, row_ids, first_id: I64, table, num_dims: I64, token_ids, log_probs, entropy, actions,
    BLOCK: tl.constexpr, FULL: tl.constexpr, DIMS: tl.constexpr, ALIGNED: tl.constexpr,
    GREEDY: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    sizes = (size1, size1, size2, size3)
    strides = (stride0, stride1, stride2, stride3)
    start = row_start(logits, row, sizes, strides, 0, DIMS, ALIGNED)
    lanes = tl.arange(0, BLOCK)
    if FULL:  # no mask in the way of 16-byte loads
        z = tl.load(start + lanes).to(tl.float64)
    else:
        z = tl.load(start + lanes, mask=lanes < num_bins, other=-float("inf")).to(tl.float64)
    if temperatures is not None:
        temperature = tl.load(temperatures + row).to(tl.float64)
        valid = (temperature > 0.0) & (temperature < float("inf"))
        temperature = tl.where(valid, temperature, float("nan"))
    top = tl.max(tl.where(z == z, z, -float("inf")), 0)
    t = (z - top) * (LOG2E / temperature)
    t = tl.where(t < LOWEST, LOWEST, t)  # NaN fails the test and stays
    w = exp2(t)
    dot = tl.sum(t * w, 0)
    good = dot == dot  # NaN wherever the row has no distribution

    best = tl.min(tl.where(z == top, lanes, BLOCK), 0)
    if GREEDY:
        bin = best
    else:
        rounded = (w + grid) - grid
        upto = tl.cumsum(rounded, 0)  # exact, as is their sum
        if step_at is not None:
            step = tl.load(step_at)
        id = row
        if row_ids is not None:
            id = tl.load(row_ids + row)
        target = uniform(seed, step, id) * tl.sum(rounded, 0)
        bin = tl.sum((upto <= target).to(tl.int32), 0)
    bin = tl.where(good, bin, num_bins // 2)

    rest = tl.sum(tl.where(lanes == best, 0.0, w), 0)  # without a largest, which is 1
    log_sum = log1p(rest)
    drawn = tl.sum(tl.where(lanes == bin, t, 0.0), 0)
    log_prob = tl.where(good, LN2 * drawn - log_sum, float("nan"))
    tl.store(token_ids + row, first_id + bin)
    tl.store(log_probs + row, log_prob.to(tl.float32))
    if entropy is not None:
        mean = LN2 * dot / (1.0 + rest)
        tl.store(entropy + row, tl.where(log_sum < mean, 0.0, log_sum - mean).to(tl.float32))
    action = tl.load(table + row % num_dims * num_bins + bin)
    tl.store(actions + row, tl.where(good, action, float("nan")))
