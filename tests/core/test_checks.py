"""Argument checks: which name, what was expected, what came."""

from __future__ import annotations

import math

import pytest
import torch

from logpi.core import checks


@pytest.mark.parametrize("value", [1, 0.5, 1e-38, 1e300, 10**20])
def test_positive_numbers(value: float) -> None:
    checks.positive("x", value)


@pytest.mark.parametrize("value", [0, -0.0, -1, math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_positive(value: float) -> None:
    with pytest.raises(ValueError, match=f"^x: expected a finite number above 0, got {value}$"):
        checks.positive("x", value)


@pytest.mark.parametrize("value", ["1", None, True, 1j, torch.tensor(1.0)])
def test_what_is_no_number(value: object) -> None:
    kind = type(value).__name__
    with pytest.raises(TypeError, match=f"^x: expected a number, got {kind}$"):
        checks.positive("x", value)


def test_dtype() -> None:
    checks.dtype("x", torch.ones(2), *checks.FLOATS)
    with pytest.raises(TypeError, match=r"^x: expected int64 or int32, got float16$"):
        checks.dtype("x", torch.ones(2).half(), torch.int64, torch.int32)
    with pytest.raises(TypeError, match=r"^x: expected a torch.Tensor, got list$"):
        checks.dtype("x", [1, 2], torch.int64)


def test_shape() -> None:
    checks.shape("x", torch.ones(2, 3), (2, 3))
    checks.shape("x", torch.ones(()), ())
    with pytest.raises(ValueError, match=r"^x: expected shape \(3, 2\), got \(2, 3\)$"):
        checks.shape("x", torch.ones(2, 3), torch.Size([3, 2]))


def test_device() -> None:
    checks.device("x", torch.ones(2), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"^x: expected a tensor on cpu, got one on meta$"):
        checks.device("x", torch.ones(2, device="meta"), torch.device("cpu"))
