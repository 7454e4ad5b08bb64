"""Rows of strided tensors, for kernels that read them where they lie."""

from __future__ import annotations

from torch import Tensor


def leading_rows(x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes and strides (in elements) of the leading dims, at least one and as few as possible."""
    if x.is_contiguous():
        columns = x.shape[-1]
        return (x.numel() // columns if columns else 0,), (columns,)
    sizes, strides = [1], [0]
    for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        if size == 1:
            continue
        if sizes[-1] == 1:
            sizes[-1], strides[-1] = size, stride
        elif strides[-1] == stride * size:  # the outer dim steps over whole inner ones
            sizes[-1], strides[-1] = sizes[-1] * size, stride
        else:
            sizes.append(size)
            strides.append(stride)
    return tuple(sizes), tuple(strides)


def may_overlap(x: Tensor) -> bool:
    """Whether two indices of `x` may be one address: False is sure, True may be cautious."""
    reach = 1  # addresses below it belong to the dims seen so far
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size == 0:
            return False
        if size > 1:
            if stride < reach:
                return True
            reach += stride * (size - 1)
    return False
