"""logpi.testing: the instruments, tested, and tested to be able to fail."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from logpi.testing import (
    CASES,
    DTYPES,
    allocations,
    assert_all_within_budget,
    assert_op_within_budget,
    assert_within_budget,
    bits,
    in_float64,
    nan_empty,
    outputs_and_gradients,
    ulp,
)

INF, NAN = torch.inf, torch.nan


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("value", [1.0, -1.5, 1.9999, 2.0, 3.0, 0.007, 1000.0])
def test_ulp_is_the_distance_to_the_next(value: float, dtype: torch.dtype) -> None:
    here = torch.tensor(value, dtype=dtype).abs()
    if dtype == torch.bfloat16:
        after = (here.view(torch.int16) + 1).view(dtype)
    else:
        after = torch.nextafter(here, torch.tensor(INF, dtype=dtype))
    assert ulp(here.item(), dtype) == after.double().item() - here.double().item()


# ---- the budget ---------------------------------------------------------------------------------


def tensors(*rows: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    ours, yardstick, truth = (torch.tensor(row, dtype=torch.float64) for row in rows)
    return ours.float(), yardstick.float(), truth


EPS = 2.0**-23  # an ulp of 1 in float32


@pytest.mark.parametrize(
    ("ours", "yardstick"),
    [
        ([1 + 4 * EPS, 0], [1, 0]),  # four ulp of the largest, anywhere
        ([1, 4 * EPS], [1, 0]),
        ([1, 9e-5], [1 + 5e-5, 0]),  # twice the yardstick's worst, anywhere
    ],
)
def test_within(ours: list[float], yardstick: list[float]) -> None:
    assert_within_budget(*tensors(ours, yardstick, [1, 0]))


@pytest.mark.parametrize(
    ("ours", "yardstick"),
    [
        ([1 + 5 * EPS, 0], [1, 0]),
        ([1, -5 * EPS], [1, 0]),
        ([1, 1.1e-4], [1 + 5e-5, 0]),
        ([1, 0.1], [1, INF]),  # where the yardstick fails it earns us nothing
    ],
)
def test_over(ours: list[float], yardstick: list[float]) -> None:
    with pytest.raises(AssertionError, match="over the budget"):
        assert_within_budget(*tensors(ours, yardstick, [1, 0]))


@pytest.mark.parametrize("special", [NAN, INF, -INF])
@pytest.mark.parametrize("other", [0.0, NAN, INF, -INF])
def test_what_is_not_finite_must_match(special: float, other: float) -> None:
    if bits(torch.tensor(special)).equal(bits(torch.tensor(other))):
        assert_within_budget(*tensors([1, special], [1, special], [1, special]))
        return
    for ours, truth in ((special, other), (other, special)):
        with pytest.raises(AssertionError, match=r"\(1,\): (NaN|.inf) in one and not in the other"):
            assert_within_budget(*tensors([1, ours], [1, truth], [1, truth]))


def test_the_message_holds_the_whole_case() -> None:
    ours, yardstick, truth = (t.reshape(1, 3) for t in tensors([0, 2, 7], [0, 2, 4.5], [0, 2, 4]))
    with pytest.raises(AssertionError) as error:
        assert_within_budget(ours, yardstick, truth, name="entropy")
    message = str(error.value)
    for part in ("entropy(0, 2)", "ours 7,", "truth 4,", "yardstick 4.5", "error 3", "2 * 0.5"):
        assert part in message


def test_shapes_and_dtypes_must_match() -> None:
    one, two = torch.ones(1), torch.ones(2)
    with pytest.raises(AssertionError, match="shapes"):
        assert_within_budget(one, two, two.double())
    with pytest.raises(AssertionError, match="dtypes"):
        assert_within_budget(two.half(), two, two.double())
    with pytest.raises(AssertionError, match="dtypes"):
        assert_within_budget(two, two, two)  # a truth in float32 is none
    assert_within_budget(one[:0], one[:0], one[:0].double())


def test_all_of_them_are_compared() -> None:
    good, bad, truth = {"a": torch.ones(1)}, {"a": torch.zeros(1)}, {"a": torch.ones(1).double()}
    assert_all_within_budget(good, good, truth)
    with pytest.raises(AssertionError, match="case 3 a"):
        assert_all_within_budget(bad, good, truth, name="case 3")
    with pytest.raises(AssertionError, match="should be the same"):
        assert_all_within_budget({}, good, truth)


# ---- an op's numbers ----------------------------------------------------------------------------


class Two(NamedTuple):
    product: Tensor
    total: Tensor
    skipped: Tensor | None = None
    detached: Tensor | None = None
    flag: Tensor | None = None


def op(x: Tensor, y: Tensor, count: Tensor, *, backend: str = "torch", wrong: float = 0.0) -> Two:
    product = x * y if backend == "torch" else x * y * (1 + wrong)
    return Two(product, x.sum(-1) * count, None, y.detach(), x > 0)


def test_outputs_and_gradients() -> None:
    x, y, count = torch.randn(3, 4), torch.randn(3, 4), torch.tensor(2)
    numbers = outputs_and_gradients(op, x, y, count)
    assert [*numbers] == [
        "product",
        "total",
        "detached",
        "gradient of product to float argument 0",
        "gradient of product to float argument 1",
        "gradient of total to float argument 0",
        "gradient of product+total to float argument 0",
        "gradient of product+total to float argument 1",
    ]
    upstream = numbers["gradient of product to float argument 0"] / y
    assert upstream.std() > 0.1  # random, not ones
    torch.testing.assert_close(numbers["gradient of product to float argument 1"], upstream * x)
    again = outputs_and_gradients(op, x, y, count)
    assert all(torch.equal(again[name], numbers[name]) for name in numbers)
    assert not x.requires_grad


def test_assert_op_within_budget() -> None:
    arguments = torch.randn(3, 4), torch.randn(3, 4), torch.tensor(2)
    assert_op_within_budget(op, *arguments, backend="mine")
    with pytest.raises(AssertionError, match="product"):
        assert_op_within_budget(op, *arguments, backend="mine", wrong=1e-5)


def test_in_float64() -> None:
    half, count, text = in_float64(torch.ones(2).half(), torch.ones(2, dtype=torch.int32), "text")
    assert (half.dtype, count.dtype, text) == (torch.float64, torch.int32, "text")


# ---- cases --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(case, dtype: torch.dtype) -> None:
    for shape in ((3, 101), (2, 1), (0, 5)):
        logits = case.logits(*shape, dtype=dtype, seed=1)
        assert (logits.shape, logits.dtype) == (shape, dtype)
        assert not (logits.isnan() | logits.isposinf()).any()
        assert logits.isfinite().any(-1).all()  # each row is a distribution
        assert torch.equal(logits, case.logits(*shape, dtype=dtype, seed=1))
    if dtype == torch.float32:
        assert not torch.equal(case.logits(3, 101, seed=1), case.logits(3, 101, seed=2))


def test_case_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


# ---- memory -------------------------------------------------------------------------------------


def test_nan_empty() -> None:
    like = torch.zeros(3, 4)
    with nan_empty():
        floats = [
            torch.empty(5),
            torch.empty(5, dtype=torch.bfloat16),
            torch.empty_like(like),
            torch.empty_strided((2, 3), (3, 1)),
            like.new_empty(2),
            like.new_empty_strided((2, 3), (1, 2)),
            torch.empty_permuted((2, 3), (1, 0)),
        ]
        ints, bools = torch.empty(3, dtype=torch.int32), torch.empty(3, dtype=torch.bool)
        written = torch.zeros(3) + torch.ones(3)
        torch.empty(2, device="meta")
    assert all(tensor.isnan().all() for tensor in floats)
    assert (ints == torch.iinfo(torch.int32).max).all()
    assert bools.all()
    assert torch.equal(written, torch.ones(3))


def test_nan_empty_reaches_a_backward() -> None:
    class Forgetful(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            return torch.empty_like(grad)  # and writes nothing

    x = torch.ones(3, requires_grad=True)
    y = Forgetful.apply(x)
    with nan_empty():
        (grad,) = torch.autograd.grad(y, x, torch.ones(3))
    assert grad.isnan().all()


def test_allocations() -> None:
    x = torch.zeros(100, 100)
    with allocations() as sizes:
        _ = x[:50].view(-1)  # views are free
        x.add_(1)
        assert sizes == []
        _ = x.double()
    assert sizes == [80_000]


def test_bits() -> None:
    assert not torch.equal(bits(torch.tensor(0.0)), bits(torch.tensor(-0.0)))
    assert torch.equal(bits(torch.tensor(NAN)), bits(torch.tensor(NAN)))
    assert bits(torch.ones(4, 6, dtype=torch.bool)[:, ::2]).shape == (4, 3)
