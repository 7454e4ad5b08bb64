"""What only the cuda row has: the fused kernel, forward and backward in one read of the logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from logpi import KeepSet
from logpi.ops.token_log_probs import _cuda
from logpi.ops.token_log_probs.op import Call, check_call
from logpi.testing import CASES, DTYPES, Case, bits, nan_empty
from rows import ROWS, Row

on_cuda = pytest.mark.parametrize(
    "kernel_row", [row for row in ROWS if row.backend == "cuda"], ids=str, indirect=True
)

N = 5
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "temperatures": {"temperature": torch.tensor([0.5, 1.0, 2.0, 0.9, 1.3])},
    "slice": {"support": slice(3, 4000)},
    "vocab_size": {"vocab_size": 4990},
    "loss_mask": {"loss_mask": torch.tensor([1, 0, 1, 1, 0], dtype=torch.bool)},
    "softcap": {"softcap": 2.0},
    "logit_scale": {"logit_scale": 1.5},
    "everything": {
        "temperature": torch.tensor([0.5, 1.0, 2.0, 0.9, 1.3]),
        "support": slice(1, 4985),
        "vocab_size": 4990,
        "loss_mask": torch.tensor([1, 0, 1, 1, 1], dtype=torch.bool),
        "softcap": 2.0,
        "logit_scale": 1.5,
    },
}


def checked(logits: Tensor, ids: Tensor, inplace_backward: bool = False, **options: Any) -> Call:
    arguments: dict[str, Any] = {
        "temperature": 1.0,
        "support": None,
        "vocab_size": None,
        "loss_mask": None,
        "softcap": None,
        "logit_scale": 1.0,
        **options,
    }
    fields = (True, False, False, False, False)
    return check_call(logits, ids, fields=fields, inplace_backward=inplace_backward, **arguments)


def in_two_calls(call: Call, upstream: Tensor, of_entropy: Tensor) -> list[Tensor]:
    outputs, stats = _cuda.forward(call, keep_stats=True)
    assert stats is not None
    grad = _cuda.backward(call, outputs.log_probs, stats, upstream, of_entropy)
    return [outputs.log_probs, outputs.entropy, grad]


def in_one_call(call: Call, upstream: Tensor, of_entropy: Tensor) -> list[Tensor]:
    with nan_empty():
        outputs, grad = _cuda.fused(call, upstream, of_entropy)
    assert outputs.entropy is not None
    return [outputs.log_probs, outputs.entropy, grad]


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    for name, a, b in zip(("log_probs", "entropy", "grad_logits"), one, other, strict=True):
        assert torch.equal(bits(a), bits(b)), name


def upstreams() -> tuple[Tensor, Tensor]:
    # row 2 has none, row 3 one of the two
    return torch.tensor([1.0, -0.5, 0.0, 0.0, 2.0]), torch.tensor([0.1, 0.3, 0.0, -0.2, 0.0])


# The emulated device has 24 KiB of shared memory: a row of 4999 fp32 is kept in part, and one of
# bf16 whole.
@on_cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("option", OPTIONS)
def test_fused_has_the_bits_of_two_calls(kernel_row: Row, option: str, dtype: torch.dtype) -> None:
    logits = (torch.randn(N, 4999) * 3).to(dtype)
    ids = torch.tensor([0, 17, 4984, 5, 3999])
    call = checked(logits, ids, **OPTIONS[option])
    assert_same(in_one_call(call, *upstreams()), in_two_calls(call, *upstreams()))


@on_cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_fused_on_every_kind_of_row(kernel_row: Row, case: Case, dtype: torch.dtype) -> None:
    call = checked(case.logits(N, 1111, dtype=dtype), torch.tensor([0, 17, 1110, 5, 39]))
    assert_same(in_one_call(call, *upstreams()), in_two_calls(call, *upstreams()))


@on_cuda
@pytest.mark.parametrize("columns", [1, 7, 8, 1024, 40_001])
def test_fused_at_every_length(kernel_row: Row, columns: int) -> None:
    ids = torch.randint(columns, (N,))
    for dtype in DTYPES:
        call = checked(torch.randn(N, columns).to(dtype), ids)
        assert_same(in_one_call(call, *upstreams()), in_two_calls(call, *upstreams()))


@on_cuda
@pytest.mark.parametrize("start", [0, 1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fused_in_place_of_unaligned_rows(kernel_row: Row, start: int, dtype: torch.dtype) -> None:
    around = torch.randn(N, 5011).to(dtype)
    before = around.clone()
    ids = torch.tensor([0, 17, 4984, 5, 3999])
    expected = in_two_calls(checked(around[:, start : start + 4999], ids), *upstreams())
    view = around[:, start : start + 4999]
    got = in_one_call(checked(view, ids, inplace_backward=True), *upstreams())
    assert got[2].data_ptr() == view.data_ptr()
    assert_same(got, expected)
    for side in (slice(0, start), slice(start + 4999, None)):
        assert torch.equal(around[:, side], before[:, side])


@on_cuda
def test_fused_with_one_upstream_gradient(kernel_row: Row) -> None:
    call = checked(torch.randn(N, 300), torch.arange(N))
    upstream, none = torch.randn(N), torch.zeros(N)
    outputs, grad = _cuda.fused(call, upstream, None)
    assert_same([outputs.log_probs, outputs.entropy, grad], in_two_calls(call, upstream, none))
    outputs, grad = _cuda.fused(call, None, upstream)
    assert_same([outputs.log_probs, outputs.entropy, grad], in_two_calls(call, none, upstream))


@on_cuda
def test_fused_refuses_what_it_does_not_serve(kernel_row: Row) -> None:
    several = checked(torch.randn(2, 10), torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"token_ids: expected one id a row.*got 3 ids"):
        _cuda.fused(several, torch.ones(2, 3), None)
    kept = checked(torch.randn(1, 10), torch.zeros(1).long(), support=KeepSet.from_lists([[0, 3]]))
    with pytest.raises(ValueError, match="contiguous support"):
        _cuda.fused(kept, torch.ones(1), None)
