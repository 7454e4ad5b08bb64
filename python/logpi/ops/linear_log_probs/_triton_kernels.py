# mypy: ignore-errors
# Triton's language is not Python's: its annotations are values.
"""The Triton kernel that folds a tile of logits into what is carried of its rows: one program a
row, so that a row's bits know nothing of the others."""

import triton
import triton.language as tl

from logpi.ops.linear_log_probs import _finish
from logpi.ops.token_log_probs._triton_kernels import F32, I32, I64, kernel, row_factor, sum_segment
from logpi.ops.token_log_probs._triton_sums import LOG2E, merge, squash

TOP = tl.constexpr(_finish.TOP)
REST = tl.constexpr(_finish.REST)
DOT = tl.constexpr(_finish.DOT)
SQUARE = tl.constexpr(_finish.SQUARE)
LINEAR = tl.constexpr(_finish.LINEAR)
AT = tl.constexpr(_finish.AT)
TOP_LOGIT = tl.constexpr(_finish.TOP_LOGIT)
FIELDS = tl.constexpr(_finish.FIELDS)


@triton.jit
def load_field(state, field: tl.constexpr, WANTED: tl.constexpr):
    if WANTED:
        return tl.load(state + field)
    else:
        return tl.zeros([], tl.float64)


@triton.jit
def store_field(state, field: tl.constexpr, value, WANTED: tl.constexpr):
    if WANTED:
        tl.store(state + field, value)


@kernel
def fold_kernel(
    logits, stride: I64, first_column: I32, length: I32, token_ids, ids_per_row: I32,
    loss_mask, temperatures, factor: F32, cap: F32, inner: F32, state, targets,
    BLOCK: tl.constexpr, IDS: tl.constexpr, ALIGNED: tl.constexpr, WHOLE: tl.constexpr,
    CAP: tl.constexpr, COLLISION: tl.constexpr, MEAN_LOGIT: tl.constexpr, TOP1: tl.constexpr,
):  # fmt: skip
    """A row of the tile, columns [first_column, first_column + length), into state [N, 7]; values
    of the ids that lie in it into targets [N, K]. Fields that are not wanted stay as they are."""
    row = tl.program_id(0).to(tl.int64)
    if loss_mask is not None:
        if tl.load(loss_mask + row) == 0:
            return
    # Read before the reductions: behind their barriers one thread overwrites what all have read.
    state += row * FIELDS
    before = (
        tl.load(state + TOP), tl.load(state + REST), tl.load(state + DOT),
        load_field(state, SQUARE, COLLISION), load_field(state, LINEAR, MEAN_LOGIT),
        load_field(state, AT, TOP1),
    )  # fmt: skip
    scale = row_factor(row, factor, temperatures) * LOG2E
    start = logits + row * stride
    if ALIGNED:
        start = tl.multiple_of(start, 16)
    top, rest, dot, square, linear, arg = sum_segment(
        start, tl.zeros([], tl.int32), length, None, length, cap, inner, scale,
        BLOCK, WHOLE, False, CAP, True, COLLISION, MEAN_LOGIT, TOP1,
    )  # fmt: skip
    # Merged in float64, where the error does not grow with the number of tiles.
    tile = (
        top.to(tl.float64), rest.to(tl.float64), dot.to(tl.float64),
        tl.zeros([], tl.float64) + square, linear, (first_column + arg).to(tl.float64),
    )  # fmt: skip
    top, rest, dot, square, linear, at = merge(before, tile, scale)
    top = tl.where(rest == rest, top, float("nan"))  # NaN was met, in this tile or before
    tl.store(state + TOP, top)
    tl.store(state + REST, rest)
    tl.store(state + DOT, dot)
    store_field(state, SQUARE, square, COLLISION)
    store_field(state, LINEAR, linear, MEAN_LOGIT)
    store_field(state, AT, at, TOP1)
    tl.store(state + TOP_LOGIT, top)

    for k in range(0, ids_per_row, IDS):
        lanes = k + tl.arange(0, IDS)
        to = row * ids_per_row + lanes
        column = tl.load(token_ids + to, mask=lanes < ids_per_row, other=-1) - first_column
        here = (column >= 0) & (column < length)
        z = tl.load(start + column, mask=here, other=0.0).to(tl.float32)
        tl.store(targets + to, squash(z, cap, inner, CAP)[0].to(tl.float64), mask=here)
