# mypy: ignore-errors
# Triton's language is not Python's: its annotations are values.
"""The Triton kernels: a program a tile of tokens, a launch a phase, as covariance_clip.cu has them.
All that programs add up are integers, so no order shows."""

import triton
import triton.language as tl

from logpi.ops.covariance_clip import _phases, op
from logpi.ops.token_log_probs._triton_kernels import F32, I64, kernel

F64 = tl.float64
LIMBS = tl.constexpr(32)
SUM = tl.constexpr(34)  # its limbs, how many are inf, how many -inf
COUNT = tl.constexpr(_phases.COUNT)
FIRST = tl.constexpr(_phases.FIRST)
FIRST_TIE = tl.constexpr(_phases.FIRST_TIE)
TIES = tl.constexpr(_phases.TIES)
SELECTED = tl.constexpr(_phases.SELECTED)
DIGITS = tl.constexpr(2048)
COVARIANCES = tl.constexpr(op.COVARIANCES)
CLIP = tl.constexpr(op.CLIP)
NOBODY = tl.constexpr(-1)  # the key of a token that takes no part: the largest unsigned


# ---- sums ---------------------------------------------------------------------------------------


@triton.jit
def add_exactly(x, valid, to, SOME: tl.constexpr):
    """Adds SOME floats to an exact sum: csrc/covariance_clip/exact_sum.h."""
    bits = tl.where(valid, x, 0.0).to(tl.int32, bitcast=True)
    biased = (bits >> 23) & 255
    exponent = tl.maximum(biased, 1)
    mantissa = (bits & 0x7FFFFF) | (tl.minimum(biased, 1) << 23)
    value = mantissa << (exponent % 8)
    value = tl.where(biased == 255, 0, tl.where(bits < 0, -value, value)).to(tl.int64)
    limbs = tl.arange(0, LIMBS)
    mine = (exponent // 8)[:, None] == limbs[None, :]
    sums = tl.sum(tl.where(mine, value[:, None], 0), 0)
    tl.atomic_add(to + limbs, sums, mask=sums != 0, sem="relaxed")
    above = tl.sum(((biased == 255) & (x != float("-inf"))).to(tl.int64), 0)
    below = tl.sum(((biased == 255) & (x != float("inf"))).to(tl.int64), 0)
    tl.atomic_add(to + LIMBS, above, mask=above != 0, sem="relaxed")
    tl.atomic_add(to + LIMBS + 1, below, mask=below != 0, sem="relaxed")


@kernel
def sums_kernel(
    log_probs, advantages, loss_mask, size: I64, head, counts,
    TILE: tl.constexpr, SOME: tl.constexpr,
):  # fmt: skip
    """Adds up a tile; SOME tokens at a time, for each meets 32 limbs."""
    tile = tl.program_id(0)
    count = tl.zeros([], tl.int32)
    for start in range(0, TILE, SOME):
        at = tile.to(tl.int64) * TILE + start + tl.arange(0, SOME)
        valid = tl.load(loss_mask + at, mask=at < size, other=0) != 0
        count += tl.sum(valid.to(tl.int32), 0)
        x = tl.load(log_probs + at, mask=valid, other=0.0)
        add_exactly(x, valid, head, SOME)
        x = tl.load(advantages + at, mask=valid, other=0.0)
        add_exactly(x, valid, head + SUM, SOME)
    tl.store(counts + tile, count)
    tl.atomic_add(head + COUNT, count.to(tl.int64), sem="relaxed")


# ---- keys ---------------------------------------------------------------------------------------


@triton.jit
def mean_of(sum, count):
    total = tl.zeros([], tl.float64)
    unit = tl.full([], 2.0**-150, tl.float64)
    carry = tl.zeros([], tl.int64)
    for i in range(0, LIMBS):
        limb = tl.load(sum + i) + carry
        carry = tl.where(i + 1 < LIMBS, (limb + 128) >> 8, 0)
        total += (limb - carry * 256).to(tl.float64) * unit
        unit *= 256.0
    mean = (total / tl.maximum(count, 1).to(tl.float64)).to(tl.float32)
    above, below = tl.load(sum + LIMBS), tl.load(sum + LIMBS + 1)
    mean = tl.where(above != 0, float("inf"), mean)
    return tl.where(below != 0, tl.where(above != 0, float("nan"), float("-inf")), mean)


@triton.jit
def counted_before(counts, tile, TILE: tl.constexpr):
    """What the tiles before this one have counted."""
    sum = tl.zeros([], tl.int32)
    for start in range(0, tile, TILE):
        at = start + tl.arange(0, TILE)
        sum += tl.sum(tl.load(counts + at, mask=at < tile, other=0), 0)
    return sum


@triton.jit
def count_digits(digits, takes_part, histogram):
    found = tl.histogram(digits, DIGITS, mask=takes_part)
    tl.atomic_add(histogram + tl.arange(0, DIGITS), found, mask=found != 0, sem="relaxed")


@kernel
def keys_kernel(
    log_probs, advantages, loss_mask, exclude, size: I64, lower: F32, upper: F32, seed: I64,
    step: I64, step_at, head, counts, keys, histogram, out,
    TILE: tl.constexpr, RULE: tl.constexpr,
):  # fmt: skip
    """Covariances of a tile, or the keys that a rule gives them."""
    tile = tl.program_id(0)
    at = tile.to(tl.int64) * TILE + tl.arange(0, TILE)
    here = at < size
    valid = tl.load(loss_mask + at, mask=here, other=0) != 0
    count = tl.load(head + COUNT)
    c = tl.load(advantages + at, mask=valid, other=0.0) - mean_of(head + SUM, count)
    c *= tl.load(log_probs + at, mask=valid, other=0.0) - mean_of(head, count)
    if RULE == COVARIANCES:
        tl.store(out + at, tl.where(valid, c, 0.0), mask=here)
    else:
        if RULE == CLIP:
            takes_part = valid & (c > lower) & (c < upper)
            if exclude is not None:
                takes_part &= tl.load(exclude + at, mask=takes_part, other=0) == 0
            rank = tl.cumsum(valid.to(tl.int32), 0) - 1
            index = rank.to(tl.int64) + (tl.load(head + FIRST) + counted_before(counts, tile, TILE))
            if step_at is not None:
                step = tl.load(step_at)
            steps = tl.zeros([TILE], tl.int64) + step
            word, _, _, _ = tl.philox(
                seed, index.to(tl.int32), (index >> 32).to(tl.int32), steps.to(tl.int32),
                (steps >> 32).to(tl.int32),
            )  # fmt: skip
            key = (word >> 1).to(tl.int32)
        else:
            takes_part = valid
            key = tl.where(c == 0.0, 0.0, c).to(tl.int32, bitcast=True)  # -0 is 0
            key = tl.where(c == c, key ^ (~(key >> 31) & 0x7FFFFFFF), 0)
        key = tl.where(takes_part, key, NOBODY)
        tl.store(keys + at, key, mask=here)
        count_digits((key >> 21) & 2047, takes_part, histogram)


# ---- the radix select ---------------------------------------------------------------------------


@triton.jit
def next_digit(head, histogram, fraction, AT: tl.constexpr):
    """The digits of the last key taken, one more than before, and how many that begin so are
    wanted; from the histogram of the next digit of those that begin like it."""
    SIZE: tl.constexpr = 1024 if AT == 2 else DIGITS
    found = tl.load(histogram + tl.arange(0, SIZE))
    upto = tl.cumsum(found, 0)
    if AT == 0:
        count = tl.load(head + COUNT)
        some = (count.to(tl.float64) * fraction).to(tl.int64)
        wanted = tl.minimum(tl.maximum(some, tl.minimum(count, 1)), tl.sum(found, 0).to(tl.int64))
        prefix = tl.zeros([], tl.int64)
    else:
        prefix = tl.load(head + SELECTED + 2 * AT)
        wanted = tl.load(head + SELECTED + 2 * AT + 1)
    below = upto < wanted
    prefix = prefix * SIZE + tl.sum(below.to(tl.int64), 0)
    wanted -= tl.sum(tl.where(below, found, 0), 0)
    first = tl.program_id(0) == 0
    tl.store(head + SELECTED + 2 * AT + 2, prefix, mask=first)
    tl.store(head + SELECTED + 2 * AT + 3, wanted, mask=first)
    return prefix


@triton.jit
def load_keys(keys, at, size):
    return tl.load(keys + at, mask=at < size, other=NOBODY).to(tl.int64) & 0xFFFFFFFF


@kernel
def digit_kernel(
    size: I64, fraction: F64, head, keys, histogram, following, TILE: tl.constexpr, AT: tl.constexpr
):
    """The histogram of the digit after the one of `histogram`."""
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    prefix = next_digit(head, histogram, fraction, AT)
    key = load_keys(keys, at, size)
    if AT == 0:
        mine = (key >> 21) == prefix
        digit = (key >> 10) & 2047
    else:
        mine = (key >> 10) == prefix
        digit = key & 1023
    mine &= key != 0xFFFFFFFF
    count_digits(digit.to(tl.int32), mine, following)


@kernel
def ties_kernel(size: I64, head, keys, histogram, ties, TILE: tl.constexpr):
    tile = tl.program_id(0)
    last = next_digit(head, histogram, 0.0, 2)
    at = tile.to(tl.int64) * TILE + tl.arange(0, TILE)
    count = tl.sum((load_keys(keys, at, size) == last).to(tl.int32), 0)
    tl.store(ties + tile, count)
    tl.atomic_add(head + TIES, count.to(tl.int64), mask=count != 0, sem="relaxed")


@kernel
def mark_kernel(size: I64, head, keys, ties, out, TILE: tl.constexpr):
    tile = tl.program_id(0)
    at = tile.to(tl.int64) * TILE + tl.arange(0, TILE)
    last, wanted = tl.load(head + SELECTED + 6), tl.load(head + SELECTED + 7)
    key = load_keys(keys, at, size)
    tie = key == last
    before = tl.load(head + FIRST_TIE) + counted_before(ties, tile, TILE)
    rank = tl.cumsum(tie.to(tl.int32), 0) - 1 + before
    tl.store(out + at, (key < last) | (tie & (rank < wanted)), mask=at < size)
