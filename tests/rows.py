"""The ways to run an op: what `row` and `kernel_row` of conftest.py stand for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import emulated
import interpreter
from logpi.ops.token_log_probs import BACKENDS

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if _INTERPRETED:
    interpreter.patch()


@dataclass(frozen=True)
class Row:
    """One way to run an op: a row of the backend table, on one instruction set."""

    name: str
    backend: str
    isa: str | None = None  # None: the one the machine picks

    @property
    def reads_values(self) -> bool:
        """Whether bad ids and temperatures raise; where not, such a row is NaN."""
        return self.backend in ("cpu", "torch")

    @property
    def emulated(self) -> bool:
        """Its sources compiled for a CPU run on CPU tensors, with a GPU at hand or not."""
        return self.backend == "cuda"

    @property
    def interpreted(self) -> bool:
        return self.backend == "triton" and _INTERPRETED

    @property
    def tiny(self) -> bool:
        """Thousands of times slower than what it stands for: sizes of many MB are not for it."""
        return self.interpreted or (self.emulated and emulated.VARIANT != "plain")

    def __str__(self) -> str:
        return self.name


# The single place to extend: tests that take `row` or `kernel_row` run on every entry.
ROWS = (
    Row("cuda", "cuda"),
    Row("triton", "triton"),
    Row("cpu", "cpu"),
    Row("cpu-avx512", "cpu", "avx512"),
    Row("cpu-avx2", "cpu", "avx2"),
    Row("cpu-sse2", "cpu", "sse2"),
    Row("cpu-neon", "cpu", "neon"),
    Row("torch", "torch"),
)


def serve(row: Row) -> Iterator[Row]:
    """The row, ready to run; skips with the row's own sentence where it cannot."""
    if row.emulated:
        with emulated.kernels():
            yield row
        return
    why_not = next(backend for backend in BACKENDS if backend.name == row.backend).unavailable()
    if why_not is not None:
        pytest.skip(f"{row}: {why_not}")
    if row.backend == "triton" and not row.interpreted:
        pytest.skip(f"{row}: tests of every row hold tensors on a CPU; it has its own marked gpu")
    if row.interpreted:
        with interpreter.small_tiles():
            yield row
        return
    if row.isa is None:
        yield row
        return
    native = _native_isa()
    if row.isa == native:
        pytest.skip(f"{row}: is what the machine picks, and runs as {row.backend!r}")
    from logpi import _C

    try:
        _C.force_cpu_isa(row.isa)
    except ValueError as error:
        pytest.skip(f"{row}: {error}")
    try:
        yield row
    finally:
        _C.force_cpu_isa(native)


def _native_isa() -> str:
    from logpi import _C

    return _C.cpu_isa()
