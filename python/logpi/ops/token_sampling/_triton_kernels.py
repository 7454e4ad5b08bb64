# mypy: ignore-errors
# Triton's language is not Python's: its annotations are values.
"""The Triton kernels of token_sampling: one program takes a row, in blocks whose order depends on
nothing else. The row is read again for every digit of a threshold; it stays in L2."""

import triton
import triton.language as tl

from logpi.core._triton_draws import uniform
from logpi.ops.token_log_probs._triton_kernels import F32, I32, I64, kernel, row_start
from logpi.ops.token_log_probs._triton_sums import LN2, LOG2E, distance

ALL = tl.constexpr(0x7FFFFFFF)
LARGEST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def load(start, at, size, BLOCK: tl.constexpr):
    lanes = at + tl.arange(0, BLOCK)
    z = tl.load(start + lanes, mask=lanes < size, other=-float("inf")).to(tl.float32)
    return z, lanes


@triton.jit
def rising_key(z):
    """A float as an integer that rises with it; -0 is 0."""
    bits = tl.where(z == 0.0, 0.0, z).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of(key):
    key = key.to(tl.int32)
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def measure(start, size, top, scale, a, b, c, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """How many values, or what weight, have keys of at least a, b and c."""
    some = tl.zeros([BLOCK], tl.float32)
    more, most = some, some
    for at in range(0, size, BLOCK):
        z, _ = load(start, at, size, BLOCK)
        key = rising_key(z)
        if MASS:
            w = tl.exp2(distance(z, top, scale))
        else:
            w = tl.full([BLOCK], 1.0, tl.float32)
        most += tl.where(key >= a, w, 0.0)
        more += tl.where(key >= b, w, 0.0)
        some += tl.where(key >= c, w, 0.0)
    return (
        tl.sum(most.to(tl.float64), 0), tl.sum(more.to(tl.float64), 0),
        tl.sum(some.to(tl.float64), 0),
    )  # fmt: skip


@triton.jit
def reach(start, size, top, scale, low, high, target, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The highest key in [low, high] such that all from it on measure at least `target`, else low;
    and what those above it measure. Nothing lies above `high`. Two bits a pass."""
    above = tl.zeros([], tl.float64)
    while low < high:
        step = (high - low + 3) // 4
        a, b = low + step, tl.minimum(low + 2 * step, high)
        c = tl.minimum(low + 3 * step, high)
        most, more, some = measure(start, size, top, scale, a, b, c, MASS, BLOCK)
        in_a, in_b, in_c = most >= target, more >= target, some >= target
        above = tl.where(in_c, above, tl.where(in_b, some, tl.where(in_a, more, most)))
        high = tl.where(in_c, high, tl.where(in_b, c - 1, tl.where(in_a, b - 1, a - 1)))
        low = tl.where(in_c, c, tl.where(in_b, b, tl.where(in_a, a, low)))
    return low, above


@triton.jit
def kept_of(z, cut, ties, seen):
    """What a block keeps, if as many ties were seen before it; and the ties seen after it."""
    equal = z == cut
    kept = z > cut
    found = tl.sum(equal.to(tl.int32), 0)
    if found > 0:
        kept = kept | (equal & (tl.cumsum(equal.to(tl.int32), 0) + seen <= ties))
    return kept, tl.minimum(seen + found, ties)


@triton.jit
def scalar(row, values, high, low):
    """A number of the row in float64: from a tensor, or in two halves."""
    if values is None:
        return tl.zeros([], tl.float64) + high + low
    else:
        return tl.load(values + row)


@kernel
def sample_kernel(
    base, size_1: I64, size_2: I64, size_3: I64, stride_0: I64, stride_1: I64, stride_2: I64,
    stride_3: I64, vocab_size: I32, row_ids, temperatures, top_ks, top_ps, min_ps,
    temperature_high: F32, temperature_low: F32, top_k: I32, top_p_high: F32, top_p_low: F32,
    least_high: F32, least_low: F32, seed: I64, step: I64, step_at,
    token_ids, log_probs, entropy, cuts, counts,
    DIMS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, TOP_K: tl.constexpr,
    TOP_P: tl.constexpr, MIN_P: tl.constexpr, GREEDY: tl.constexpr,
):  # fmt: skip
    """Draws a row's token. `least` is the log of min_p. Only where counts is given are cuts."""
    row = tl.program_id(0).to(tl.int64)
    sizes = (0, size_1, size_2, size_3)
    strides = (stride_0, stride_1, stride_2, stride_3)
    start = row_start(base, row, sizes, strides, 0, DIMS, ALIGNED)
    temperature = scalar(row, temperatures, temperature_high, temperature_low)
    bad = (temperature > 0) & (temperature < float("inf"))
    bad = bad == 0

    tops = tl.full([BLOCK], -float("inf"), tl.float32)
    odd = tl.zeros([BLOCK], tl.int32)
    for at in range(0, vocab_size, BLOCK):
        z, _ = load(start, at, vocab_size, BLOCK)
        odd |= (z != z).to(tl.int32)
        tops = tl.maximum(tops, z)
    top = tl.max(tops, 0)
    bad |= (tl.max(odd, 0) != 0) | ((tl.abs(top) <= LARGEST) == 0)
    k = vocab_size.to(tl.int64)
    if TOP_K:
        k = top_k.to(tl.int64)
        if top_ks is not None:
            k = tl.load(top_ks + row)
        bad |= k < 1
    p = scalar(row, top_ps, top_p_high, top_p_low)
    bad |= ((p > 0) & (p <= 1)) == 0
    least = scalar(row, None, least_high, least_low)
    if min_ps is not None:
        share = tl.load(min_ps + row)
        bad |= ((share >= 0) & (share <= 1)) == 0
        least = tl.log(share)
    # A bad row is an empty one from here on.
    size = tl.where(bad, 0, vocab_size)
    top = tl.where(bad, 0.0, top)
    temperature = tl.where(bad, 1.0, temperature)
    scale = tl.minimum(tl.maximum((1.0 / temperature) * LOG2E, 1e-37), 1e38).to(tl.float32)

    # ---- the cut: values above it are kept, and the first ties with it
    cut = tl.zeros([], tl.float32) - LARGEST  # all but -inf
    ties = tl.full([], ALL, tl.int32)
    highest = rising_key(top).to(tl.int64)
    lowest = rising_key(cut).to(tl.int64)
    some = tl.zeros([], tl.int64)  # of the values at `lowest`, if top-k has taken only some
    if TOP_K:
        if k < size:
            key, above = reach(start, size, top, scale, lowest, highest, k, False, BLOCK)
            if key > lowest:  # else there are no more than k
                lowest = key
                cut = value_of(key)
                some = k - above.to(tl.int64)
                ties = some.to(tl.int32)
    if TOP_P:
        if p < 1:
            whole = tl.where(some > 0, lowest + 1, lowest)
            mass, _, _ = measure(start, size, top, scale, whole, whole, whole, True, BLOCK)
            mass += some.to(tl.float64) * tl.exp2(distance(value_of(lowest), top, scale))
            key, above = reach(start, size, top, scale, lowest, highest, p * mass, True, BLOCK)
            each = tl.exp2(distance(value_of(key), top, scale)).to(tl.float64)
            most = tl.where((key == lowest) & (some > 0), some, size).to(tl.float64)
            need = tl.where(each > 0, tl.ceil((p * mass - above) / each), 1.0)
            cut = value_of(key)
            ties = tl.minimum(tl.maximum(need, 1.0), most).to(tl.int32)
    if MIN_P:
        floor = top.to(tl.float64) + temperature * least
        near = tl.maximum(floor, -LARGEST).to(tl.float32)
        key = rising_key(near) + (near.to(tl.float64) < floor).to(tl.int32)
        if value_of(key) > cut:
            cut = value_of(key)
            ties = ties * 0 + ALL

    # ---- sums over what is kept, a block after the other
    total = tl.zeros([], tl.float64)
    dot, count, seen = total, tl.zeros([], tl.int64), ties * 0
    last = tl.zeros([BLOCK], tl.int32)
    for at in range(0, size, BLOCK):
        z, lanes = load(start, at, size, BLOCK)
        kept, seen = kept_of(z, cut, ties, seen)
        t = distance(z, top, scale)
        w = tl.where(kept, tl.exp2(t), 0.0)
        total += tl.sum(w.to(tl.float64), 0)
        dot += tl.sum((w * t).to(tl.float64), 0)
        count += tl.sum(kept.to(tl.int64), 0)
        if GREEDY:
            last = tl.maximum(last, tl.where(z == top, ALL - lanes, 0))
        else:
            last = tl.maximum(last, tl.where(w > 0, lanes, 0))
    token = tl.max(last, 0)  # where rounding carries the target past the end
    if GREEDY:
        token = tl.where(bad, 0, ALL - token)
    else:
        name = row
        if row_ids is not None:
            name = tl.load(row_ids + row)
        if step_at is not None:
            step = tl.load(step_at)
        target = uniform(seed, step, name) * total
        passed = tl.zeros([], tl.float64)
        ahead, seen = passed, ties * 0
        at = tl.zeros([], tl.int32)
        while (at < size) & (passed + ahead <= target):
            passed += ahead
            z, lanes = load(start, at, size, BLOCK)
            kept, seen = kept_of(z, cut, ties, seen)
            w = tl.where(kept, tl.exp2(distance(z, top, scale)), 0.0).to(tl.float64)
            ahead = tl.sum(w, 0)
            if passed + ahead > target:
                hit = (w > 0) & (passed + tl.cumsum(w, 0) > target)
                final = tl.max(tl.where(w > 0, lanes, 0), 0)
                token = tl.min(tl.where(hit, lanes, final), 0)
            at += BLOCK

    drawn = tl.load(start + token).to(tl.float64)
    whole = tl.log(total)
    log_prob = tl.minimum((drawn - top.to(tl.float64)) / temperature - whole, 0.0)
    tl.store(token_ids + row, token.to(tl.int64))
    tl.store(log_probs + row, tl.where(bad, float("nan"), log_prob).to(tl.float32))
    if entropy is not None:
        value = tl.maximum(whole - (dot / total) * LN2, 0.0)
        tl.store(entropy + row, tl.where(bad, float("nan"), value).to(tl.float32))
    if counts is not None:
        tl.store(counts + row + 1, tl.where(bad, 1, count))
        tl.store(counts, tl.zeros([], tl.int64), mask=row == 0)
        tl.store(cuts + 2 * row, tl.where(bad, float("nan"), cut))
        tl.store(cuts + 2 * row + 1, ties.to(tl.float32, bitcast=True))


@kernel
def kept_kernel(
    base, size_1: I64, size_2: I64, size_3: I64, stride_0: I64, stride_1: I64, stride_2: I64,
    stride_3: I64, vocab_size: I32, cuts, indptr, indices,
    DIMS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The ids of a row that its cut keeps, rising; of a bad row token 0."""
    row = tl.program_id(0).to(tl.int64)
    sizes = (0, size_1, size_2, size_3)
    strides = (stride_0, stride_1, stride_2, stride_3)
    start = row_start(base, row, sizes, strides, 0, DIMS, ALIGNED)
    cut = tl.load(cuts + 2 * row)
    ties = tl.load(cuts + 2 * row + 1).to(tl.int32, bitcast=True)
    place = indices + tl.load(indptr + row)
    tl.store(place, tl.zeros([], tl.int32), mask=cut != cut)
    seen = ties * 0
    for at in range(0, vocab_size, BLOCK):
        z, lanes = load(start, at, vocab_size, BLOCK)
        kept, seen = kept_of(z, cut, ties, seen)
        upto = tl.cumsum(kept.to(tl.int32), 0)
        tl.store(place + upto - 1, lanes, mask=kept)
        place += tl.max(upto, 0)
