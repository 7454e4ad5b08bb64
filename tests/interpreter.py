"""What Triton's interpreter needs to stand in for a GPU in tests (TRITON_INTERPRET=1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy

SMALL = {"block": 1024, "segment": 4096}  # a row of 4999 is a full group, a rest, two segments


def patch() -> None:
    """Both below, once a process."""
    round_bf16_to_nearest()
    patch_the_language_once()


def patch_the_language_once() -> None:
    """The interpreter rebinds all of triton.language whenever one jit function calls another. The
    launch has done so for functions that see `tl`, and what those of Triton itself see in `tl.core`
    stays bound: half of a test's time."""
    import triton.language as tl
    import triton.runtime.interpreter as interpreter

    bound = set()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        sees_core = any(value is tl.core for value in self.fn.__globals__.values())
        if sees_core and "core" not in bound:
            interpreter._patch_lang(self.fn)
            bound.add("core")
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call


def round_bf16_to_nearest() -> None:
    """The interpreter truncates float32 to bfloat16; GPUs round to the nearest, ties to even."""
    import triton.language as tl
    import triton.runtime.interpreter as interpreter

    original = interpreter._convert_float

    def convert(x: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source != tl.float32 or target != tl.bfloat16:
            return original(x, source, target, rounding)
        bits = numpy.ascontiguousarray(x).view(numpy.uint32).astype(numpy.uint64)
        out = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16)
        out[numpy.isnan(numpy.asarray(x)).reshape(out.shape)] = 0x7FC0
        return out.reshape(numpy.shape(x))

    interpreter._convert_float = convert


@contextmanager
def small_tiles(**tiles: int) -> Iterator[None]:
    """Within it, rows are cut into small pieces: the kernels' every path on short rows."""
    from logpi.ops.token_log_probs import _triton

    before = _triton.TILES
    _triton.TILES = before._replace(**(SMALL | tiles))
    try:
        with numpy.errstate(all="ignore"):  # (-inf) - (-inf) is no warning on a GPU
            yield
    finally:
        _triton.TILES = before
