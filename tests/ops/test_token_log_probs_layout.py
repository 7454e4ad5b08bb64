"""Memory: views read where they lie, nothing touched around them, nothing copied, int64 offsets."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from logpi import BackendError, KeepSet, token_log_probs
from logpi.testing import DTYPES, allocations, bits, nan_empty

if TYPE_CHECKING:
    from rows import Row

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
ALL = {f"return_{name}": True for name in ("entropy", "collision", "lse", "top1", "mean_logit")}
B, T, V = 3, 5, 1031  # prime; more than a vector, and rows end at every alignment


def values(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5)).to(dtype)


def random_ids(*shape: int) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(6))


def results(logits: Tensor, ids: Tensor, backend: str, **options) -> list[Tensor]:
    """Every output and the gradient, contiguous."""
    leaf = logits.detach().requires_grad_()
    out = token_log_probs(leaf, ids, backend=backend, **ALL, **options)
    upstream = [values(*out.log_probs.shape), values(*out.entropy.shape)]
    return [*out, *torch.autograd.grad(out[:2], leaf, upstream)]


def assert_same_bits(ours: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(ours, expected, strict=True):
        assert torch.equal(bits(one), bits(other))


# ---- views of the logits ------------------------------------------------------------------------
# Each takes [B, T, V] values and lays them out in a buffer whose other elements are NaN.


def _nan(*shape: int, like: Tensor) -> Tensor:
    return torch.full(shape, torch.nan, dtype=like.dtype)


def _all_but_the_last_step(x: Tensor) -> Tensor:
    buffer = _nan(B, T + 1, V, like=x)
    buffer[:, :-1] = x
    return buffer[:, :-1]


def _all_but_the_first_step(x: Tensor) -> Tensor:
    buffer = _nan(B, T + 1, V, like=x)
    buffer[:, 1:] = x
    return buffer[:, 1:]


def _padded_rows(x: Tensor) -> Tensor:
    buffer = _nan(B, T, V + 13, like=x)
    buffer[..., :V] = x
    return buffer[..., :V]


def _columns_in_the_middle(x: Tensor) -> Tensor:
    buffer = _nan(B, T, V + 13, like=x)
    buffer[..., 5 : 5 + V] = x
    return buffer[..., 5 : 5 + V]


def _time_major(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def _every_second_row(x: Tensor) -> Tensor:
    buffer = _nan(B, 2 * T, V, like=x)
    buffer[:, ::2] = x
    return buffer[:, ::2]


def _overlapping_rows(x: Tensor) -> Tensor:
    return values(V + B * T, dtype=x.dtype).as_strided((B, T, V), (T, 1, 1))


def _one_row_for_all(x: Tensor) -> Tensor:
    return x[:1, :1].expand(B, T, V)


def _one_step_for_all(x: Tensor) -> Tensor:
    return x[:, :1].expand(B, T, V)


VIEWS = [
    _all_but_the_last_step,
    _all_but_the_first_step,
    _padded_rows,
    _columns_in_the_middle,
    _time_major,
    _every_second_row,
    _overlapping_rows,
    _one_row_for_all,
    _one_step_for_all,
]


@by_dtype
@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__.strip("_"))
def test_a_view_is_read_where_it_lies(
    kernel_row: Row, view: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    if kernel_row.interpreted and dtype == torch.float16:
        pytest.skip(f"{kernel_row}: ten seconds for addresses that are those of bfloat16")
    logits, ids = view(values(B, T, V, dtype=dtype)), random_ids(B, T)
    whole = logits._base if logits._base is not None else logits
    before = bits(whole).clone()
    assert_same_bits(
        results(logits, ids, kernel_row.backend),
        results(logits.contiguous(), ids, kernel_row.backend),
    )
    assert torch.equal(bits(whole), before)  # the input is never written


@by_dtype
def test_five_dims_in_any_order(kernel_row: Row, dtype: torch.dtype) -> None:
    logits = values(2, 3, 2, 3, V, dtype=dtype).permute(3, 1, 0, 2, 4)  # no two leading dims merge
    ids = random_ids(3, 3, 2, 2)
    assert_same_bits(
        results(logits, ids, kernel_row.backend),
        results(logits.contiguous(), ids, kernel_row.backend),
    )


@by_dtype
def test_shifted_one_element_at_a_time(kernel_row: Row, dtype: torch.dtype) -> None:
    # Every alignment of a 64-byte vector; NaN sits right before and right after.
    rows, ids = values(2, V, dtype=dtype), random_ids(2)
    expected = results(rows, ids, kernel_row.backend)
    for shift in range(1, 64 // rows.element_size() + 2):
        buffer = _nan(2 * V + 80, like=rows)
        view = buffer.as_strided((2, V), (V, 1), shift)
        view.copy_(rows)
        assert_same_bits(results(view, ids, kernel_row.backend), expected)


@by_dtype
def test_writing_in_place_stays_inside_the_view(kernel_row: Row, dtype: torch.dtype) -> None:
    rows, ids, upstream = values(2, V, dtype=dtype), random_ids(2), values(2)
    leaf = rows.clone().requires_grad_()
    log_probs = token_log_probs(leaf, ids, backend=kernel_row.backend).log_probs
    (expected,) = torch.autograd.grad(log_probs, leaf, upstream)
    for shift in range(1, 64 // rows.element_size() + 2):
        buffer = _nan(2 * V + 90, like=rows)
        view = buffer.as_strided((2, V), (V + 3, 1), shift)  # three sentinels between the rows
        view.copy_(rows)
        view.requires_grad_()
        log_probs = token_log_probs(
            view, ids, inplace_backward=True, backend=kernel_row.backend
        ).log_probs
        (grad,) = torch.autograd.grad(log_probs, view, upstream)
        assert grad.data_ptr() == view.data_ptr()
        assert torch.equal(bits(grad), bits(expected))
        with torch.no_grad():
            view.fill_(torch.nan)
        assert buffer.isnan().all()


def test_a_last_dim_with_steps(kernel_row: Row) -> None:
    # A kernel refuses with its reason; auto serves by the definition.
    columns_first = values(V, 4).T
    with pytest.raises(BackendError, match=f"{kernel_row.backend}: .*unit stride in the last dim"):
        token_log_probs(columns_first, random_ids(4), backend=kernel_row.backend)
    ours = results(columns_first, random_ids(4), "auto")
    packed = results(columns_first.contiguous(), random_ids(4), "torch")
    for one, other in zip(ours, packed, strict=True):  # torch's bits depend on the layout
        torch.testing.assert_close(one, other)
    one_column = values(4, 3)[:, :1]  # V = 1: the stride means nothing
    ours = token_log_probs(
        one_column, torch.zeros(4, dtype=torch.int64), backend=kernel_row.backend
    )
    assert ours.log_probs.tolist() == [0, 0, 0, 0]


# ---- views of everything else -------------------------------------------------------------------


@pytest.mark.parametrize("id_dtype", [torch.int64, torch.int32], ids=str)
def test_strided_ids_masks_and_temperatures(kernel_row: Row, id_dtype: torch.dtype) -> None:
    logits = values(B, T, V)
    ids = random_ids(T, B, 2).to(id_dtype).transpose(0, 1)
    many = random_ids(2, B, T).to(id_dtype).permute(1, 2, 0)
    mask = torch.tensor([True, False, True, True, False])
    warm = 0.5 + torch.rand(B, 2 * T)
    for options in (
        {"loss_mask": mask.expand(B, T)},
        {"loss_mask": mask[:B, None].expand(B, T)},
        {"loss_mask": torch.stack([mask] * 2 * B, -1)[:, ::2].T},
        {"temperature": warm[:, ::2]},
        {"temperature": warm[:, :1].expand(B, T)},
        {"temperature": torch.tensor(0.7).expand(B, T)},
        {"temperature": warm[:, 1::2].double(), "loss_mask": mask.expand(B, T)},
    ):
        packed = {name: value.contiguous() for name, value in options.items()}
        for some in (ids[..., 0], ids, many):
            assert_same_bits(
                results(logits, some, kernel_row.backend, **options),
                results(logits, some.contiguous().long(), kernel_row.backend, **packed),
            )


def test_strided_one_dimensional_arguments(kernel_row: Row) -> None:
    # [N] tensors with a step: nothing has to reshape them, so nothing packs them by accident.
    logits = values(T, V)
    ids, mask, warm = random_ids(2 * T)[::2], torch.rand(2 * T) < 0.6, 0.5 + torch.rand(2 * T)
    lists = [[1, 2], [1030], [4, 3, 900], [5], [0, 7]]
    keep = KeepSet.from_lists(lists)
    apart = KeepSet(
        torch.stack([keep.indptr, keep.indptr + 99], -1)[:, 0],
        torch.stack([keep.indices, keep.indices + 99], -1)[:, 0],
    )
    assert_same_bits(
        results(
            logits,
            ids,
            kernel_row.backend,
            loss_mask=mask[::2],
            temperature=warm[::2],
            support=apart,
        ),
        results(
            logits,
            ids.contiguous(),
            kernel_row.backend,
            loss_mask=mask[::2].contiguous(),
            temperature=warm[::2].contiguous(),
            support=keep,
        ),
    )


@by_dtype
def test_strided_upstream_gradients(kernel_row: Row, dtype: torch.dtype) -> None:
    logits, ids = values(B, T, V, dtype=dtype).requires_grad_(), random_ids(B, T)
    out = token_log_probs(logits, ids, return_entropy=True, backend=kernel_row.backend)
    for upstream in (
        values(T, B).T,
        values(B, 1).expand(B, T),
        torch.tensor(0.3).expand(B, T),  # what .sum().backward() sends
        values(B, T).double().float(),
        values(B, 2 * T)[:, ::2],
    ):
        heads = [upstream, upstream]
        (ours,) = torch.autograd.grad(out[:2], logits, heads, retain_graph=True)
        heads = [upstream.contiguous(), upstream.contiguous()]
        (expected,) = torch.autograd.grad(out[:2], logits, heads, retain_graph=True)
        assert torch.equal(bits(ours), bits(expected))


# ---- memory -------------------------------------------------------------------------------------


@by_dtype
@pytest.mark.parametrize("mode", ["no grad", "fresh", "in place"])
def test_no_copy_of_the_logits(kernel_row: Row, mode: str, dtype: torch.dtype) -> None:
    # A cast to float32 or a .contiguous() is what the peers' memory claims stumble over.
    logits = values(B, T + 1, V, dtype=dtype)[:, :-1].requires_grad_(mode != "no grad")
    ids, upstream, small = random_ids(B, T), [values(B, T), values(B, T)], 16 * B * T
    in_place = {"inplace_backward": mode == "in place"}
    with allocations() as forward:
        out = token_log_probs(logits, ids, backend=kernel_row.backend, **ALL, **in_place)
    assert forward
    assert max(forward) <= small
    if mode == "no grad":
        return
    with allocations() as backward:
        torch.autograd.grad(out[:2], logits, upstream)
    large = [size for size in backward if size > small]
    assert large == ([] if mode == "in place" else [logits.numel() * logits.element_size()])


def _peak_megabytes(function: Callable[[], object]) -> float:
    """How far the process's resident memory rose above where it was."""
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1])
    kept = function()
    peak = int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    del kept
    return (peak - before) / 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_peak_memory_of_the_process(kernel_row: Row) -> None:
    if kernel_row.tiny:
        pytest.skip(f"{kernel_row}: the memory would be the interpreter's, or a sanitizer's")
    # 64 MB of bf16: what C++ allocates shows here too; 4 MB is room for stacks and the allocator.
    logits = torch.zeros(512, 65_536, dtype=torch.bfloat16).normal_().requires_grad_()
    ids, upstream = torch.arange(512), torch.randn(512)
    options = {"return_entropy": True, "backend": kernel_row.backend}

    def backward(**in_place: bool) -> Tensor:
        out = token_log_probs(logits, ids, **options, **in_place)
        return torch.autograd.grad(out[:2], logits, [upstream, upstream])[0]

    token_log_probs(logits[:8], ids[:8], **options)  # threads start, pages of code come in
    assert _peak_megabytes(lambda: token_log_probs(logits, ids, **options)) < 4
    assert _peak_megabytes(backward) < 68  # the gradient; less where freed pages are taken again
    assert _peak_megabytes(lambda: backward(inplace_backward=True)) < 4


# ---- beyond 2^31 elements -----------------------------------------------------------------------


@by_dtype
def test_a_row_stride_beyond_int32(kernel_row: Row, dtype: torch.dtype) -> None:
    # Address space, not memory: of the 8 GB only the pages of three rows are ever touched.
    stride = 2**30 + 7
    buffer = torch.empty(2 * stride + V, dtype=dtype)
    assert 2 * stride > 2**31
    view = buffer.as_strided((3, V), (stride, 1))
    view.copy_(values(3, V, dtype=dtype))
    ids = random_ids(3)
    assert_same_bits(
        results(view, ids, kernel_row.backend), results(view.clone(), ids, kernel_row.backend)
    )


def test_writing_in_place_beyond_int32(kernel_row: Row) -> None:
    stride = 2**30 + 7
    view = torch.empty(2 * stride + V, dtype=torch.bfloat16).as_strided((3, V), (stride, 1))
    view.copy_(values(3, V, dtype=torch.bfloat16))
    expected = results(view.clone(), random_ids(3), kernel_row.backend)[-1]
    ours = results(view, random_ids(3), kernel_row.backend, inplace_backward=True)[-1]
    assert ours.data_ptr() == view.data_ptr()
    assert torch.equal(bits(ours), bits(expected))


@pytest.mark.slow
def test_complaint_08_more_than_two_to_the_31_elements(kernel_row: Row) -> None:
    # The catalogue's shape: 16400 x 151936 = 2.49e9 elements. The logits are one row, expanded; the
    # gradient is 5 GB of bf16, of which only the last rows are looked at.
    if kernel_row.tiny:
        pytest.skip(f"{kernel_row}: 2.5e9 elements; the row strides above pass int32 as well")
    if kernel_row.isa is not None:
        pytest.skip("offsets are computed outside the code that differs between ISAs")
    num_rows, columns = 16_400, 151_936
    one = values(columns, dtype=torch.bfloat16)
    ids = torch.full((num_rows,), 77)
    mask = torch.zeros(num_rows, dtype=torch.bool)
    mask[-2:] = True
    upstream = values(num_rows)
    leaf = one.expand(num_rows, columns).detach().requires_grad_()
    out = token_log_probs(leaf, ids, loss_mask=mask, backend=kernel_row.backend)
    with nan_empty():
        (grad,) = torch.autograd.grad(out.log_probs, leaf, upstream)
    last = one[None].clone().requires_grad_()
    alone = token_log_probs(last, ids[:1], backend=kernel_row.backend).log_probs
    (expected,) = torch.autograd.grad(alone, last, upstream[-1:])
    assert torch.equal(out.log_probs[-1:], alone)
    assert torch.equal(grad[-1:], expected)
    assert (grad[-3] == 0).all()
    assert (out.log_probs[:-2] == 0).all()
