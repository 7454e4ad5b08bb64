"""Rows, order and hypothesis's settings: what every test file shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, settings

import emulated
import interpreter
from logpi.ops.token_log_probs import BACKENDS

settings.register_profile(
    "logpi",
    derandomize=True,  # the same examples on every run; a failure names its own reproduction
    deadline=None,
    database=None,
    max_examples=60,  # a few seconds a property on two cores
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # `row` is the same throughout
)
settings.load_profile("logpi")

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


def _serve(row: Row) -> Iterator[Row]:
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


@pytest.fixture(params=ROWS, ids=str)
def row(request: pytest.FixtureRequest) -> Iterator[Row]:
    """Every row, the definition included."""
    yield from _serve(request.param)


@pytest.fixture(params=[row for row in ROWS if row.backend != "torch"], ids=str)
def kernel_row(request: pytest.FixtureRequest) -> Iterator[Row]:
    """The rows that are kernels: what the definition does not promise is asked of these."""
    yield from _serve(request.param)


@pytest.fixture(autouse=True)
def _settings_stay() -> Iterator[None]:
    """A test that leaves another thread count or seed behind changes its neighbours."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    assert torch.get_num_threads() == threads


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: a mistake shows in seconds. The rows of one problem one after another, so
    that its float64 truth is computed once."""
    order: dict[str, int] = {}

    def place(item: pytest.Item) -> tuple[bool, int]:
        problem = item.nodeid
        params = item.callspec.params if hasattr(item, "callspec") else {}
        for name in ("row", "kernel_row"):
            if name in params:
                problem = problem.replace(f"[{params[name]}", "[", 1)
        return item.get_closest_marker("slow") is not None, order.setdefault(problem, len(order))

    items.sort(key=place)
