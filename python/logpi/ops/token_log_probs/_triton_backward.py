# mypy: ignore-errors
# Triton's language is not Python's: its annotations are values.
"""The Triton kernels of the backward: one read of the logits, one write of their gradient.

    dx_v = sum_k g_k [v = id_k] - p_v (sum_k g_k + h (log p_v + entropy))

log p_v + entropy is formed as (x_v - top) - mean_shifted, of which neither cancels."""

import triton
import triton.language as tl

from logpi.ops.token_log_probs._triton_kernels import (
    F32,
    I32,
    I64,
    kept_range,
    kernel,
    load_block,
    row_factor,
    row_start,
)
from logpi.ops.token_log_probs._triton_sums import LN2, LOG2E, distance, expm1, squash


@triton.jit
def upstream(row, ids_per_row, loss_mask, grad_log_probs, grad_entropy, IDS: tl.constexpr):
    """The sum of a row's gradients of log_probs, its gradient of the entropy, and whether anything
    flows at all."""
    total = 0.0
    head = 0.0
    live = False
    masked = False
    if loss_mask is not None:
        masked = tl.load(loss_mask + row) == 0
    if not masked:
        if grad_log_probs is not None:
            for k in range(0, ids_per_row, IDS):
                lanes = k + tl.arange(0, IDS)
                there = lanes < ids_per_row
                g = tl.load(grad_log_probs + row * ids_per_row + lanes, mask=there, other=0.0)
                total += tl.sum(g, 0)
                live = live | (tl.max((g != 0.0).to(tl.int32), 0) > 0)
        if grad_entropy is not None:
            head = tl.load(grad_entropy + row)
            live = live | (head != 0.0)
    return total, head, live


@triton.jit
def any_token(first_id, last_id, row, token_ids, ids_per_row, IDS: tl.constexpr):
    """Whether one of a row's ids is in [first_id, last_id)."""
    found = tl.zeros([IDS], tl.int32)
    for k in range(0, ids_per_row, IDS):
        lanes = k + tl.arange(0, IDS)
        ids = tl.load(token_ids + row * ids_per_row + lanes, mask=lanes < ids_per_row, other=-1)
        found += ((ids >= first_id) & (ids < last_id)).to(tl.int32)
    return tl.max(found, 0) > 0


@triton.jit
def gradient(
    z, columns, first, last, first_column, row, token_ids, ids_per_row, log_probs, grad_log_probs,
    total, head, ref, inv_sum, mean_shifted, factor, cap, inner,
    CAP: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """d loss / d logits of a block, whose columns lie in [first, last); ids begin at
    `first_column`."""
    x, bend = squash(z.to(tl.float32), cap, inner, CAP)
    t = distance(x, ref, factor * LOG2E)
    e = tl.exp2(t)
    weight = inv_sum * factor
    dx = e * ((-weight * head * LN2) * t + weight * (head * mean_shifted - total))
    if TOKENS:
        g = tl.zeros_like(t)
        log_p = tl.zeros_like(t)
        for k in range(0, ids_per_row):
            token = tl.load(token_ids + row * ids_per_row + k) - first_column
            if (token >= first) & (token < last):
                here = columns == token
                g += tl.where(here, tl.load(grad_log_probs + row * ids_per_row + k), 0.0)
                log_p = tl.where(here, tl.load(log_probs + row * ids_per_row + k), log_p)
        # g (1 - p) as -g expm1(log p), which keeps its digits as p nears 1
        p = e * inv_sum
        others = p * ((total - g) + head * (LN2 * t - mean_shifted))
        dx = tl.where(g != 0.0, (-g * expm1(log_p) - others) * factor, dx)
    if CAP:
        return dx * (cap * inner) * bend
    else:
        return dx


@kernel
def backward_kernel(
    logits, size1: I64, size2: I64, size3: I64, stride0: I64, stride1: I64, stride2: I64,
    stride3: I64, grad, grad_size1: I64, grad_size2: I64, grad_size3: I64, grad_stride0: I64,
    grad_stride1: I64, grad_stride2: I64, grad_stride3: I64, row_length: I32,
    begin: I32, end: I32, first_column: I32, token_ids, ids_per_row: I32, loss_mask, temperatures,
    factor: F32, cap: F32, inner: F32, log_probs, stats, grad_log_probs, grad_entropy, chunks: I32,
    BLOCK: tl.constexpr, IDS: tl.constexpr, DIMS: tl.constexpr, GRAD_DIMS: tl.constexpr,
    ALIGNED: tl.constexpr, GRAD_ALIGNED: tl.constexpr, WHOLE: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
    """Four blocks of a row's gradient; 0 outside the support. `grad` may be the logits. Both begin
    with the id `first_column`, from which the support [begin, end) counts too."""
    at = tl.program_id(0) % chunks * (4 * BLOCK)
    row = (tl.program_id(0) // chunks).to(tl.int64)
    grad_sizes = (grad_size1, grad_size1, grad_size2, grad_size3)
    grad_strides = (grad_stride0, grad_stride1, grad_stride2, grad_stride3)
    to = row_start(grad, row, grad_sizes, grad_strides, 0, GRAD_DIMS, GRAD_ALIGNED)
    lanes = tl.arange(0, BLOCK)
    if WHOLE:
        begin = begin // 8 * 8  # they are
        end = end // 8 * 8
        row_length = row_length // 8 * 8
    total, head, live = upstream(row, ids_per_row, loss_mask, grad_log_probs, grad_entropy, IDS)
    if not live:  # nothing is read
        for i in tl.static_range(4):
            columns = at + i * BLOCK + lanes
            zero = tl.zeros([BLOCK], grad.dtype.element_ty)
            tl.store(to + columns, zero, mask=columns < row_length)
        return
    sizes = (size1, size1, size2, size3)
    strides = (stride0, stride1, stride2, stride3)
    start = row_start(logits, row, sizes, strides, 0, DIMS, ALIGNED)
    factor = row_factor(row, factor, temperatures)
    ref = tl.load(stats + row * 3)
    inv_sum = tl.load(stats + row * 3 + 1)
    mean_shifted = tl.load(stats + row * 3 + 2)
    plain = (at >= begin) & (at + 4 * BLOCK <= end)
    TOKENS: tl.constexpr = grad_log_probs is not None
    if TOKENS:
        low = first_column + at
        plain = plain & (not any_token(low, low + 4 * BLOCK, row, token_ids, ids_per_row, IDS))
    if plain:
        z0 = tl.load(start + (at + lanes))
        z1 = tl.load(start + (at + BLOCK + lanes))
        z2 = tl.load(start + (at + 2 * BLOCK + lanes))
        z3 = tl.load(start + (at + 3 * BLOCK + lanes))
        z = (z0, z1, z2, z3)
        for i in tl.static_range(4):
            dz = gradient(
                z[i], 0, 0, 0, 0, row, token_ids, ids_per_row, log_probs, grad_log_probs,
                total, head, ref, inv_sum, mean_shifted, factor, cap, inner, CAP, False,
            )  # fmt: skip
            tl.store(to + (at + i * BLOCK + lanes), dz.to(grad.dtype.element_ty))
    else:
        # Half blocks: what tokens need would cost registers, and programs, where there are none.
        HALF: tl.constexpr = BLOCK // 2
        for first in range(at, at + 4 * BLOCK, HALF):
            columns = first // HALF * HALF + tl.arange(0, HALF)
            inside = (columns >= begin) & (columns < end)
            z = tl.load(start + columns, mask=inside, other=0.0)
            dz = gradient(
                z, columns, first, first + HALF, first_column, row, token_ids, ids_per_row,
                log_probs, grad_log_probs, total, head, ref, inv_sum, mean_shifted, factor, cap,
                inner, CAP, TOKENS,
            )  # fmt: skip
            dz = tl.where(inside, dz, 0.0).to(grad.dtype.element_ty)
            tl.store(to + columns, dz, mask=columns < row_length)


@kernel
def kept_backward_kernel(
    logits, size1: I64, size2: I64, size3: I64, stride0: I64, stride1: I64, stride2: I64,
    stride3: I64, vocab_size: I32, token_ids, ids_per_row: I32, loss_mask, temperatures,
    factor: F32, cap: F32, inner: F32, keep_indptr, keep_indices, num_keep_indices: I64,
    log_probs, stats, grad_log_probs, grad_entropy, values,
    BLOCK: tl.constexpr, IDS: tl.constexpr, DIMS: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
    """The gradients of a row's kept ids, in their order: they may not yet overwrite the logits."""
    row = tl.program_id(0).to(tl.int64)
    total, head, live = upstream(row, ids_per_row, loss_mask, grad_log_probs, grad_entropy, IDS)
    if not live:
        return
    sizes = (size1, size1, size2, size3)
    strides = (stride0, stride1, stride2, stride3)
    start = row_start(logits, row, sizes, strides, 0, DIMS, False)
    factor = row_factor(row, factor, temperatures)
    ref = tl.load(stats + row * 3)
    inv_sum = tl.load(stats + row * 3 + 1)
    mean_shifted = tl.load(stats + row * 3 + 2)
    first, count = kept_range(row, keep_indptr, num_keep_indices)
    for at in range(0, count, BLOCK):
        z, ids, inside = load_block(
            start, at, count, keep_indices + first, vocab_size, BLOCK, False, False, True
        )
        dz = gradient(
            z, ids, 0, vocab_size, 0, row, token_ids, ids_per_row, log_probs, grad_log_probs,
            total, head, ref, inv_sum, mean_shifted, factor, cap, inner, CAP,
            grad_log_probs is not None,
        )  # fmt: skip
        tl.store(values + first + at + tl.arange(0, BLOCK), dz, mask=inside)


@kernel
def scatter_kernel(
    grad, size1: I64, size2: I64, size3: I64, stride0: I64, stride1: I64, stride2: I64,
    stride3: I64, vocab_size: I32, ids_per_row: I32, loss_mask, keep_indptr, keep_indices,
    num_keep_indices: I64, grad_log_probs, grad_entropy, values,
    BLOCK: tl.constexpr, IDS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """The gradients of kept ids to where they belong, in a row of zeros."""
    row = tl.program_id(0).to(tl.int64)
    if not upstream(row, ids_per_row, loss_mask, grad_log_probs, grad_entropy, IDS)[2]:
        return
    sizes = (size1, size1, size2, size3)
    strides = (stride0, stride1, stride2, stride3)
    to = row_start(grad, row, sizes, strides, 0, DIMS, False)
    first, count = kept_range(row, keep_indptr, num_keep_indices)
    for at in range(0, count, BLOCK):
        lanes = first + at + tl.arange(0, BLOCK)
        inside = lanes < first + count
        ids = tl.load(keep_indices + lanes, mask=inside, other=-1)
        dz = tl.load(values + lanes, mask=inside, other=0.0).to(grad.dtype.element_ty)
        tl.store(to + ids, dz, mask=(ids >= 0) & (ids < vocab_size))
