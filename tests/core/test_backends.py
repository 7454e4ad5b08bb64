"""The dispatcher: first that serves, or the named one, or every row's reason."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from logpi.core import backends
from logpi.core.backends import Backend, BackendError, explain, select
from logpi.testing import rows_that_serve


def no_gpu() -> str:
    return "needs a GPU, found none"


def odd_only(call: int) -> str | None:
    return None if call % 2 else f"serves odd numbers, got {call}"


ROWS = (
    Backend("fast", "does.not.exist", unavailable=no_gpu),
    Backend("odd", "math", why_not=odd_only),
    Backend("any", "cmath"),
)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_DEFAULT", "auto")


@pytest.mark.parametrize(("call", "row"), [(3, "odd"), (4, "any")])
def test_auto_takes_the_first_row_that_serves(call: int, row: str) -> None:
    assert select("op", ROWS, "auto", call).name == row
    assert rows_that_serve(ROWS, call)[0] == row


def test_a_named_row_serves_or_raises() -> None:
    assert select("op", ROWS, "any", 3).name == "any"
    with pytest.raises(BackendError) as error:
        select("op", ROWS, "odd", 4)
    assert str(error.value).splitlines() == [
        "op: backend 'odd' cannot serve this call",
        "  fast: needs a GPU, found none",
        "  odd: serves odd numbers, got 4",
        "  any: can serve",
    ]
    with pytest.raises(BackendError, match="needs a GPU"):
        select("op", ROWS, "fast", 3)


def test_auto_raises_when_no_row_serves() -> None:
    with pytest.raises(BackendError, match=r"(?s)backend 'auto'.*fast: needs.*odd: serves odd"):
        select("op", ROWS[:2], "auto", 4)


def test_an_unknown_name_is_not_a_refusal() -> None:
    message = r"backend: expected one of 'auto', 'fast', 'odd', 'any' for op, got 'fats'"
    with pytest.raises(ValueError, match=message):
        select("op", ROWS, "fats", 3)


def in_environment(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if LOGPI_BACKEND had been `value` at import."""
    monkeypatch.setattr(backends, "_DEFAULT", value)


@pytest.mark.parametrize(("value", "row"), [("any", "any"), ("auto", "odd"), ("odd", "odd")])
def test_the_environment_says_what_auto_means(
    monkeypatch: pytest.MonkeyPatch, value: str, row: str
) -> None:
    in_environment(value, monkeypatch)
    assert select("op", ROWS, "auto", 3).name == row
    assert select("op", ROWS, "odd", 3).name == "odd"  # a name in the call wins


def test_the_environment_is_held_to_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    in_environment("odd", monkeypatch)
    with pytest.raises(BackendError, match="backend 'odd' cannot serve"):
        select("op", ROWS, "auto", 4)
    in_environment("nonsense", monkeypatch)
    with pytest.raises(ValueError, match="'nonsense'"):
        select("op", ROWS, "auto", 3)


@pytest.mark.parametrize(("value", "default"), [("cpu", "cpu"), (None, "auto")])
def test_the_environment_is_read_at_import(value: str | None, default: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "LOGPI_BACKEND"}
    environment |= {} if value is None else {"LOGPI_BACKEND": value}
    code = "import logpi.core.backends as b; print(b._DEFAULT)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == default


def test_selecting_imports_nothing() -> None:
    usable = Backend("later", "does.not.exist")
    assert select("op", (usable,), "auto", 3) is usable
    with pytest.raises(ModuleNotFoundError):
        _ = usable.kernels


def test_kernels_are_the_module() -> None:
    import math

    assert ROWS[1].kernels is math


def test_explain_asks_the_machine_and_not_the_call() -> None:
    assert explain(ROWS) == [("fast", "needs a GPU, found none"), ("odd", None), ("any", None)]


def test_a_row_that_is_unavailable_is_not_asked_about_the_call() -> None:
    def explode(_: object) -> str:
        raise AssertionError("asked")

    why_not: Callable[[object], str] = explode
    row = Backend("broken", "math", why_not=why_not, unavailable=no_gpu)
    assert row.refusal(3) == "needs a GPU, found none"
    assert select("op", (row, *ROWS), "auto", 3).name == "odd"
