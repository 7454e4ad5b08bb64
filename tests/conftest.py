"""Fixtures, order and hypothesis's settings: what every test file shares."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from rows import ROWS, Row, serve

settings.register_profile(
    "logpi",
    derandomize=True,  # the same examples on every run; a failure names its own reproduction
    deadline=None,
    database=None,
    max_examples=60,  # a few seconds a property on two cores
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # `row` is the same throughout
)
settings.load_profile("logpi")


@pytest.fixture(params=ROWS, ids=str)
def row(request: pytest.FixtureRequest) -> Iterator[Row]:
    """Every row, the definition included."""
    yield from serve(request.param)


@pytest.fixture(params=[row for row in ROWS if row.backend != "torch"], ids=str)
def kernel_row(request: pytest.FixtureRequest) -> Iterator[Row]:
    """The rows that are kernels: what the definition does not promise is asked of these."""
    yield from serve(request.param)


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
