# mypy: ignore-errors
# Triton's language is not Python's: its annotations are values.
"""The Triton kernels: pieces of sequences, what they add up to, and the gradient, which is one
number where the mask is True."""

import triton
import triton.language as tl

from logpi.ops.token_log_probs._triton_kernels import I32, I64, kernel

F64 = tl.float64


@triton.jit
def sum_where(values, inside, lanes):
    """The sum of a piece in double; what is masked is dropped, not multiplied by 0."""
    x = tl.load(values + lanes, mask=inside, other=0.0).to(tl.float64)
    return tl.sum(x)


@kernel
def pieces_kernel(
    log_probs, log_probs_stride: I64, ref_log_probs, ref_stride: I64, old_log_probs,
    old_stride: I64, loss_mask, mask_stride: I64, num_tokens: I32, pieces: I32, sums,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A piece of a sequence into sums [B * pieces, 4]: tokens, log_probs, ref, old."""
    at = tl.program_id(0)
    row = (at // pieces).to(tl.int64)
    lanes = at % pieces * BLOCK + tl.arange(0, BLOCK)
    exists = lanes < num_tokens
    inside = tl.load(loss_mask + row * mask_stride + lanes, mask=exists, other=0) != 0
    inside = inside & exists
    to = sums + at.to(tl.int64) * 4
    tl.store(to, tl.sum(inside.to(tl.int32)).to(tl.float64))
    tl.store(to + 1, sum_where(log_probs + row * log_probs_stride, inside, lanes))
    tl.store(to + 2, sum_where(ref_log_probs + row * ref_stride, inside, lanes))
    tl.store(to + 3, sum_where(old_log_probs + row * old_stride, inside, lanes))


@triton.jit
def store_mean(to, at, total, count):
    tl.store(to + at, (tl.sum(total) / count).to(tl.float32))


@kernel
def finish_kernel(
    sums, pieces: I32, num_sequences: I32, rewards, log_z, divisor, count: F64,
    reward_scale: F64, low: F64, high: F64, log_low: F64, log_high: F64, loss, metrics, slopes,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Loss, metrics and slopes [B, 2] of all sequences, by one program."""
    if divisor is not None:
        count = tl.load(divisor)
    none = tl.zeros([ROWS], tl.float64)
    tokens, log_probs, refs, olds = none, none, none, none
    losses, log_zs, rewarded, residuals, weights, cuts = none, none, none, none, none, none
    for first in range(0, num_sequences, ROWS):
        rows = first + tl.arange(0, ROWS)
        exists = rows < num_sequences
        length, a, b, c = none, none, none, none
        for piece in range(0, pieces):
            one = sums + (rows.to(tl.int64) * pieces + piece) * 4
            length += tl.load(one, mask=exists, other=0.0)
            a += tl.load(one + 1, mask=exists, other=0.0)
            b += tl.load(one + 2, mask=exists, other=0.0)
            c += tl.load(one + 3, mask=exists, other=0.0)
        z = tl.load(log_z + rows, mask=exists, other=0.0).to(tl.float64)
        given = tl.load(rewards + rows, mask=exists & (length > 0), other=0.0).to(tl.float64)
        reward, divide_by = given * reward_scale, tl.maximum(length, 1.0)
        residual = z + (a - b) / divide_by - reward
        drift = a - c
        # The exponent is bounded and not the exponential: nothing overflows. NaN stays.
        above, below = drift >= log_high, drift <= log_low
        weight = tl.exp(tl.where(above | below, 0.0, drift))
        weight = tl.where(above, high, tl.where(below, low, weight))
        slope = 2.0 * weight * residual / count
        tl.store(slopes + rows.to(tl.int64) * 2, slope / divide_by, mask=exists)
        tl.store(slopes + rows.to(tl.int64) * 2 + 1, slope, mask=exists)
        cut = (drift > log_high) | (drift < log_low)
        tokens += length
        log_probs += a
        refs += b
        olds += c
        losses += weight * residual * residual  # 0 where there is no row, as all but the weight
        log_zs += z
        rewarded += reward
        residuals += residual
        weights += tl.where(exists, weight, 0.0)
        cuts += tl.where(exists & cut, 1.0, 0.0)
    tl.store(loss, (tl.sum(losses) / count).to(tl.float32))
    n = tl.maximum(tl.sum(tokens), 1.0)
    store_mean(metrics, 0, log_probs, n)
    store_mean(metrics, 1, olds, n)
    store_mean(metrics, 2, refs, n)
    store_mean(metrics, 3, olds - log_probs, n)
    store_mean(metrics, 4, refs - log_probs, n)
    n = tl.maximum(num_sequences, 1).to(tl.float64)
    store_mean(metrics, 5, log_zs, n)
    store_mean(metrics, 6, rewarded, n)
    store_mean(metrics, 7, residuals, n)
    store_mean(metrics, 8, weights, n)
    store_mean(metrics, 9, cuts, n)


@kernel
def gradient_kernel(
    loss_mask, mask_stride: I64, num_tokens: I32, pieces: I32, slopes, grad_loss,
    grad_log_probs, grad_log_z, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0)
    piece, row = at % pieces, (at // pieces).to(tl.int64)
    upstream = tl.load(grad_loss).to(tl.float64)
    if grad_log_z is not None:
        if piece == 0:
            of_log_z = tl.load(slopes + row * 2 + 1) * upstream
            tl.store(grad_log_z + row, of_log_z.to(tl.float32))
    if grad_log_probs is not None:
        of_token = (tl.load(slopes + row * 2) * upstream).to(tl.float32)
        lanes = piece * BLOCK + tl.arange(0, BLOCK)
        exists = lanes < num_tokens
        inside = tl.load(loss_mask + row * mask_stride + lanes, mask=exists, other=0) != 0
        to = grad_log_probs + row * num_tokens + lanes
        tl.store(to, tl.where(inside, of_token, 0.0), mask=exists)
