# mypy: ignore-errors
# Triton's language is not Python's: its annotations are values.
"""The draws of core/draws.py inside a Triton kernel."""

import triton
import triton.language as tl


@triton.jit
def uniform(seed, step, row):
    """u of (seed, step, row) in float64, of the shape of `row`; all are int64."""
    steps = row * 0 + step
    _, high, low, _ = tl.philox(
        seed, row.to(tl.int32), (row >> 32).to(tl.int32), steps.to(tl.int32),
        (steps >> 32).to(tl.int32),
    )  # fmt: skip
    bits = (high.to(tl.int64) & 0xFFFFFFFF) << 20 | (low.to(tl.int64) & 0xFFFFFFFF) >> 12
    return (bits.to(tl.float64) + 0.5) * 2.220446049250313e-16  # 2^-52
