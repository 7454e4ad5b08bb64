# mypy: ignore-errors
# Triton's language is not Python's: its annotations are values.
"""The Triton kernels of the forward. One program takes a row, or a segment of one where rows are
few; the segments and the order of every addition depend on the row's length alone."""

import inspect

import triton
import triton.language as tl

from logpi.ops.token_log_probs._triton_sums import (
    LN2,
    LOG2E,
    fold,
    log1p,
    merge,
    no_sum,
    no_sums,
    reduce_lanes,
    squash,
)

I32 = tl.int32
I64 = tl.int64
F32 = tl.float32


def kernel(function):
    """Jit with nothing specialised but types, the constexprs and which arguments are None: a new
    length, temperature or address compiles nothing."""
    names = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.annotation is not tl.constexpr
    ]
    return triton.jit(function, do_not_specialize=names, do_not_specialize_on_alignment=names)


# ---- a row: where it is, how it is scaled, what it is normalised over ---------------------------


@triton.jit
def row_start(base, row, sizes, strides, column, DIMS: tl.constexpr, ALIGNED: tl.constexpr):
    """The address of a column of a row of a strided tensor with DIMS leading dims."""
    offset = tl.zeros([], tl.int64) + column
    for i in tl.static_range(DIMS - 1, 0, -1):
        offset += row % sizes[i] * strides[i]
        row = row // sizes[i]
    start = base + (offset + row * strides[0])
    if ALIGNED:
        start = tl.multiple_of(start, 16)
    return start


@triton.jit
def row_factor(row, factor, temperatures):
    """What multiplies a squashed logit; NaN where the temperature is none."""
    if temperatures is None:
        return factor
    else:
        temperature = tl.load(temperatures + row)
        good = (temperature > 0.0) & (temperature < float("inf"))
        return tl.where(good, tl.div_rn(factor, temperature), float("nan"))


@triton.jit
def kept_range(row, keep_indptr, num_keep_indices):
    """First kept id and how many; none where indptr makes no sense."""
    first = tl.load(keep_indptr + row)
    last = tl.load(keep_indptr + row + 1)
    good = (first >= 0) & (first <= last) & (last <= num_keep_indices)
    return tl.where(good, first, 0), tl.where(good, last - first, 0).to(tl.int32)


@triton.jit
def load_block(
    start, at, end, kept, vocab_size,
    BLOCK: tl.constexpr, FULL: tl.constexpr, WHOLE: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Logits [at, at + BLOCK) of a support, where they are in its list, and which are inside it."""
    lanes = at + tl.arange(0, BLOCK)
    if FULL:
        return tl.load(start + lanes), lanes, lanes >= at
    else:
        if WHOLE:  # the support ends where a vector ends: vectors are inside or outside as a whole
            end = end // 8 * 8
        inside = lanes < end
        if KEEP:
            ids = tl.load(kept + lanes, mask=inside, other=0)
            good = (ids >= 0) & (ids < vocab_size)
            return tl.load(start + ids, mask=inside & good, other=float("nan")), ids, inside
        else:
            return tl.load(start + lanes, mask=inside, other=0.0), lanes, inside


@triton.jit
def load_group(
    start, at, end, kept, vocab_size,
    BLOCK: tl.constexpr, FULL: tl.constexpr, WHOLE: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Four blocks, all loads before the first use."""
    at = at // (4 * BLOCK) * (4 * BLOCK)  # it is; this tells the compiler, for its wide loads
    z0, i0, m0 = load_block(start, at, end, kept, vocab_size, BLOCK, FULL, WHOLE, KEEP)
    at += BLOCK
    z1, i1, m1 = load_block(start, at, end, kept, vocab_size, BLOCK, FULL, WHOLE, KEEP)
    at += BLOCK
    z2, i2, m2 = load_block(start, at, end, kept, vocab_size, BLOCK, FULL, WHOLE, KEEP)
    at += BLOCK
    z3, i3, m3 = load_block(start, at, end, kept, vocab_size, BLOCK, FULL, WHOLE, KEEP)
    return (z0, z1, z2, z3), (i0, i1, i2, i3), (m0, m1, m2, m3)


@triton.jit
def finite(z, inside, cap, inner, FULL: tl.constexpr, CAP: tl.constexpr):
    """Squashed, and -inf outside the support (after the softcap, which would lift it to -cap)."""
    x = squash(z.to(tl.float32), cap, inner, CAP)[0]
    if FULL:
        return x
    else:
        return tl.where(inside, x, -float("inf"))


@triton.jit
def fold_group(
    sums, group, cap, inner, scale,
    FULL: tl.constexpr, KEEP: tl.constexpr, CAP: tl.constexpr, DOT: tl.constexpr,
    SQUARE: tl.constexpr, LINEAR: tl.constexpr, ARG: tl.constexpr,
):  # fmt: skip
    z, ids, inside = group
    x0 = finite(z[0], inside[0], cap, inner, FULL, CAP)
    x1 = finite(z[1], inside[1], cap, inner, FULL, CAP)
    x2 = finite(z[2], inside[2], cap, inner, FULL, CAP)
    x3 = finite(z[3], inside[3], cap, inner, FULL, CAP)
    return fold(sums, (x0, x1, x2, x3), ids, inside, scale, KEEP, DOT, SQUARE, LINEAR, ARG)


@triton.jit
def sum_segment(
    start, at, end, kept, vocab_size, cap, inner, scale,
    BLOCK: tl.constexpr, WHOLE: tl.constexpr, KEEP: tl.constexpr, CAP: tl.constexpr,
    DOT: tl.constexpr, SQUARE: tl.constexpr, LINEAR: tl.constexpr, ARG: tl.constexpr,
):  # fmt: skip
    """The sum of entries [at, end) of a support."""
    sums = no_sums(BLOCK)
    if not KEEP:
        full = (end - at) // (4 * BLOCK)
        if full > 0:
            z, ids, inside = load_group(start, at, end, kept, vocab_size, BLOCK, True, WHOLE, KEEP)
            for _ in range(1, full):
                at += 4 * BLOCK
                ahead, ids_ahead, inside = load_group(
                    start, at, end, kept, vocab_size, BLOCK, True, WHOLE, KEEP
                )
                sums = fold_group(
                    sums, (z, ids, inside), cap, inner, scale,
                    True, KEEP, CAP, DOT, SQUARE, LINEAR, ARG,
                )  # fmt: skip
                z = ahead
                ids = ids_ahead
            sums = fold_group(
                sums, (z, ids, inside), cap, inner, scale,
                True, KEEP, CAP, DOT, SQUARE, LINEAR, ARG,
            )  # fmt: skip
            at += 4 * BLOCK
        if at < end:
            group = load_group(start, at, end, kept, vocab_size, BLOCK, False, WHOLE, KEEP)
            sums = fold_group(
                sums, group, cap, inner, scale, False, KEEP, CAP, DOT, SQUARE, LINEAR, ARG
            )
    else:
        for at_kept in range(at, end, 4 * BLOCK):
            group = load_group(start, at_kept, end, kept, vocab_size, BLOCK, False, WHOLE, KEEP)
            sums = fold_group(
                sums, group, cap, inner, scale, False, KEEP, CAP, DOT, SQUARE, LINEAR, ARG
            )
    return reduce_lanes(sums, scale, BLOCK, DOT, SQUARE, LINEAR, ARG)


# ---- forward ------------------------------------------------------------------------------------


@triton.jit
def is_kept(kept, count, token, BLOCK: tl.constexpr):
    found = tl.zeros([BLOCK], tl.int32)
    for at in range(0, count, BLOCK):
        lanes = at + tl.arange(0, BLOCK)
        ids = tl.load(kept + lanes, mask=lanes < count, other=-1)
        found += (ids == token).to(tl.int32)
    return tl.max(found, 0) > 0


@triton.jit
def store_row(field, row, value):
    if field is not None:
        tl.store(field + row, value)


@triton.jit
def store_nothing(
    row, ids_per_row, log_probs, entropy, collision, lse, top1, mean_logit, stats,
    IDS: tl.constexpr,
):  # fmt: skip
    """The outputs of a masked row: exactly 0."""
    for k in range(0, ids_per_row, IDS):
        lanes = k + tl.arange(0, IDS)
        tl.store(log_probs + row * ids_per_row + lanes, 0.0, mask=lanes < ids_per_row)
        if top1 is not None:
            tl.store(top1 + row * ids_per_row + lanes, lanes < 0, mask=lanes < ids_per_row)
    store_row(entropy, row, 0.0)
    store_row(collision, row, 0.0)
    store_row(lse, row, 0.0)
    store_row(mean_logit, row, 0.0)
    if stats is not None:
        for i in tl.static_range(3):
            tl.store(stats + row * 3 + i, 0.0)


@triton.jit
def finish(
    sums, row, start, begin, length, kept, vocab_size, token_ids, ids_per_row, factor, cap, inner,
    log_probs, entropy, collision, lse, top1, mean_logit, stats,
    BLOCK: tl.constexpr, IDS: tl.constexpr, KEEP: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
    """Every output of a row from its sum. `start` is the address of column `begin`."""
    top, rest, dot, square, linear, arg = sums
    first = row * ids_per_row
    bad = tl.zeros([IDS], tl.int32)
    for k in range(0, ids_per_row, IDS):
        lanes = k + tl.arange(0, IDS)
        ids = tl.load(token_ids + first + lanes, mask=lanes < ids_per_row, other=0)
        bad += ((ids < 0) | (ids >= vocab_size)).to(tl.int32)
    known = (tl.max(bad, 0) == 0) & (length > 0) & (rest == rest) & (factor == factor)
    good = known & (tl.abs(top) < float("inf"))  # else there is no distribution
    nan = float("nan")
    rest = tl.where(good, rest, nan)

    log_sum = log1p(rest)
    inv_sum = tl.div_rn(1.0, 1.0 + rest)
    for k in range(0, ids_per_row, IDS):
        lanes = k + tl.arange(0, IDS)
        there = lanes < ids_per_row
        ids = tl.load(token_ids + first + lanes, mask=there, other=0)
        if KEEP:
            inside = is_kept(kept, length, tl.max(ids, 0), BLOCK) & there  # IDS is 1
        else:
            inside = (ids >= begin) & (ids < begin + length) & there
        z = tl.load(start + (ids - begin), mask=inside & good, other=0.0).to(tl.float32)
        x = (squash(z, cap, inner, CAP)[0] - top) * factor - log_sum
        x = tl.where(inside, tl.where(x > 0.0, 0.0, x), -float("inf"))
        tl.store(log_probs + first + lanes, tl.where(good, x, nan), mask=there)
        if top1 is not None:
            tl.store(top1 + first + lanes, (ids == begin + arg) & good, mask=there)
    mean_shifted = LN2 * dot * inv_sum
    store_row(entropy, row, log_sum - mean_shifted)
    if collision is not None:
        whole = 1.0 + rest.to(tl.float64)
        tl.store(collision + row, ((1.0 + square.to(tl.float64)) / (whole * whole)).to(tl.float32))
    store_row(lse, row, tl.where(known & (good == 0), top, top * factor + log_sum))
    if mean_logit is not None:
        mean = (linear / length.to(tl.float64)).to(tl.float32) * factor
        tl.store(mean_logit + row, tl.where(known, mean, nan))
    if stats is not None:
        tl.store(stats + row * 3, tl.where(good, top, nan))
        tl.store(stats + row * 3 + 1, inv_sum)
        tl.store(stats + row * 3 + 2, mean_shifted)


@kernel
def forward_kernel(
    logits, size1: I64, size2: I64, size3: I64, stride0: I64, stride1: I64, stride2: I64,
    stride3: I64, begin: I32, length: I32, vocab_size: I32, token_ids, ids_per_row: I32,
    loss_mask, temperatures, factor: F32, cap: F32, inner: F32,
    keep_indptr, keep_indices, num_keep_indices: I64,
    log_probs, entropy, collision, lse, top1, mean_logit, stats, partial,
    segment: I32, segments: I32,
    BLOCK: tl.constexpr, IDS: tl.constexpr, DIMS: tl.constexpr, ALIGNED: tl.constexpr,
    WHOLE: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
    """A row; or, with `partial`, one of its `segments` segments into partial [N, segments, 6]."""
    KEEP: tl.constexpr = keep_indptr is not None
    SQUARE: tl.constexpr = collision is not None
    LINEAR: tl.constexpr = mean_logit is not None
    ARG: tl.constexpr = top1 is not None
    DOT: tl.constexpr = (entropy is not None) | (stats is not None)
    row = tl.program_id(0).to(tl.int64)
    if partial is not None:
        at = (row % segments).to(tl.int32)
        row = row // segments
    if loss_mask is not None:
        if tl.load(loss_mask + row) == 0:
            if partial is None:
                store_nothing(
                    row, ids_per_row, log_probs, entropy, collision, lse, top1, mean_logit, stats,
                    IDS,
                )  # fmt: skip
            return
    factor = row_factor(row, factor, temperatures)
    scale = factor * LOG2E
    sizes = (size1, size1, size2, size3)
    strides = (stride0, stride1, stride2, stride3)
    start = row_start(logits, row, sizes, strides, begin, DIMS, ALIGNED)
    kept = keep_indices
    if KEEP:
        first, length = kept_range(row, keep_indptr, num_keep_indices)
        kept = keep_indices + first
        segment = tl.maximum(length, 1)

    if partial is not None:
        end = tl.minimum((at + 1) * segment, length)
        top, rest, dot, square, linear, arg = sum_segment(
            start, at * segment, end, kept, vocab_size, cap, inner, scale,
            BLOCK, WHOLE, KEEP, CAP, DOT, SQUARE, LINEAR, ARG,
        )  # fmt: skip
        to = partial + (row * segments + at) * 6
        tl.store(to, top.to(tl.float64))
        tl.store(to + 1, rest.to(tl.float64))
        tl.store(to + 2, dot.to(tl.float64))
        tl.store(to + 3, square.to(tl.float64))
        tl.store(to + 4, linear)
        tl.store(to + 5, arg.to(tl.float64))
    else:
        sums = no_sum()
        for at in range(0, length, segment):
            end = tl.minimum(at + segment, length)
            more = sum_segment(
                start, at, end, kept, vocab_size, cap, inner, scale,
                BLOCK, WHOLE, KEEP, CAP, DOT, SQUARE, LINEAR, ARG,
            )  # fmt: skip
            sums = merge(sums, more, scale)
        finish(
            sums, row, start, begin, length, kept, vocab_size, token_ids, ids_per_row, factor, cap,
            inner, log_probs, entropy, collision, lse, top1, mean_logit, stats,
            BLOCK, IDS, KEEP, CAP,
        )  # fmt: skip


@triton.jit
def load_partial(partial):
    return (
        tl.load(partial).to(tl.float32), tl.load(partial + 1).to(tl.float32),
        tl.load(partial + 2).to(tl.float32), tl.load(partial + 3).to(tl.float32),
        tl.load(partial + 4), tl.load(partial + 5).to(tl.int32),
    )  # fmt: skip


@kernel
def combine_kernel(
    logits, size1: I64, size2: I64, size3: I64, stride0: I64, stride1: I64, stride2: I64,
    stride3: I64, begin: I32, length: I32, vocab_size: I32, token_ids, ids_per_row: I32,
    loss_mask, temperatures, factor: F32, cap: F32, inner: F32,
    log_probs, entropy, collision, lse, top1, mean_logit, stats, partial, segments: I32,
    IDS: tl.constexpr, DIMS: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
    """The segments of a row, merged in the order in which one program would have met them."""
    row = tl.program_id(0).to(tl.int64)
    if loss_mask is not None:
        if tl.load(loss_mask + row) == 0:
            store_nothing(
                row, ids_per_row, log_probs, entropy, collision, lse, top1, mean_logit, stats, IDS
            )
            return
    factor = row_factor(row, factor, temperatures)
    partial += row * segments * 6
    sums = no_sum()
    for at in tl.range(0, segments, loop_unroll_factor=4):
        sums = merge(sums, load_partial(partial + at * 6), factor * LOG2E)
    sizes = (size1, size1, size2, size3)
    strides = (stride0, stride1, stride2, stride3)
    start = row_start(logits, row, sizes, strides, begin, DIMS, False)
    finish(
        sums, row, start, begin, length, None, vocab_size, token_ids, ids_per_row, factor, cap,
        inner, log_probs, entropy, collision, lse, top1, mean_logit, stats,
        1, IDS, False, CAP,
    )  # fmt: skip
