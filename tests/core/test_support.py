"""KeepSet: kept ids per row in CSR form."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logpi import KeepSet

INDPTR, INDICES = torch.tensor([0, 2, 3]), torch.tensor([4, 1, 0], dtype=torch.int32)
LISTS = [[4, 1], [0]]


def test_from_lists() -> None:
    keep = KeepSet.from_lists(LISTS)
    assert keep.indptr.dtype == torch.int64
    assert keep.indices.dtype == torch.int32
    assert keep.indptr.tolist() == [0, 2, 3]
    assert keep.indices.tolist() == [4, 1, 0]  # in the order given


@pytest.mark.parametrize("rows", [[], [[]], [[], [3], []]])
def test_from_lists_with_nothing_in_them(rows: list[list[int]]) -> None:
    keep = KeepSet.from_lists(iter(rows))
    assert len(keep.indptr) == len(rows) + 1
    assert keep.to_mask(5).sum(-1).tolist() == [len(row) for row in rows]


def test_to_mask() -> None:
    expected = [[False, True, False, False, True], [True, False, False, False, False]]
    assert KeepSet(INDPTR, INDICES).to_mask(5).tolist() == expected


@given(
    rows=st.integers(0, 5),
    columns=st.integers(1, 9),
    seed=st.integers(0, 99),
    density=st.floats(0, 1),
)
def test_mask_and_back(rows: int, columns: int, seed: int, density: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, columns, generator=generator) < density
    assert torch.equal(KeepSet.from_mask(mask).to_mask(columns), mask)


def test_from_mask_with_leading_dims() -> None:
    mask = torch.rand(2, 3, 5) < 0.5
    assert torch.equal(KeepSet.from_mask(mask).to_mask(5), mask.flatten(0, 1))
    assert torch.equal(KeepSet.from_mask(mask[0, 0]).to_mask(5), mask[0, :1])  # [V] is one row
    strided = mask.transpose(0, 1)
    assert torch.equal(KeepSet.from_mask(strided).to_mask(5), strided.reshape(6, 5))


def test_from_mask_wants_bools() -> None:
    with pytest.raises(TypeError, match="mask: expected bool, got int64"):
        KeepSet.from_mask(torch.ones(2, 3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("indptr", "indices", "error", "message"),
    [
        (INDPTR.int(), INDICES, TypeError, r"KeepSet.indptr: expected int64, got int32"),
        (INDPTR, INDICES.long(), TypeError, r"KeepSet.indices: expected int32, got int64"),
        ([0, 1], INDICES, TypeError, r"KeepSet.indptr: expected a torch.Tensor, got list"),
        (INDPTR[None], INDICES, ValueError, r"KeepSet.indptr: expected one .*got shape \(1, 3\)"),
        (INDPTR, INDICES[None], ValueError, r"KeepSet.indices: expected one .*shape \(1, 3\)"),
        (INDPTR[:0], INDICES, ValueError, r"KeepSet.indptr: expected \[N \+ 1\] .*, got none"),
        (INDPTR, INDICES.to("meta"), ValueError, r"KeepSet: .*one device, got cpu and meta"),
    ],
)
def test_what_it_refuses(indptr, indices, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        KeepSet(indptr, indices)


def test_check_lets_good_sets_pass() -> None:
    KeepSet(INDPTR, INDICES).check(5)
    KeepSet(INDPTR, INDICES).check(5, torch.tensor([True, False]))
    KeepSet.from_lists([]).check(5)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([[4, 1], [5]], r"support.indices: expected ids in \[0, 5\), got 5 in row 1"),
        ([[-1, 1], [0]], r"support.indices: expected ids in \[0, 5\), got -1 in row 0"),
        ([[4, 1], []], r"support: expected at least one kept id, got none in row 1"),
        ([[4, 1], [2, 0, 2]], r"support.indices: expected each id once, got .*in row 1"),
    ],
)
def test_check_names_the_bad_row(lists: list[list[int]], message: str) -> None:
    keep = KeepSet.from_lists(lists)
    with pytest.raises(ValueError, match=message):
        keep.check(5)
    bad_row = int(message[-1])
    keep.check(5, torch.arange(2) != bad_row)  # masked: not looked at


@pytest.mark.parametrize("indptr", [[1, 2, 3], [0, 2, 4], [0, 4, 3], [0, -1, 3]])
def test_check_names_a_bad_indptr(indptr: list[int]) -> None:
    with pytest.raises(ValueError, match=r"support.indptr: expected to rise from 0 to at most 3 "):
        KeepSet(torch.tensor(indptr), INDICES).check(5)


def test_spare_indices_are_not_looked_at() -> None:
    spare = torch.tensor([4, 1, 0, 99, -7, 4], dtype=torch.int32)
    keep = KeepSet(INDPTR, spare)
    keep.check(5)
    assert torch.equal(keep.to_mask(5), KeepSet(INDPTR, INDICES).to_mask(5))
    nothing = KeepSet(torch.zeros(1, dtype=torch.int64), spare)
    assert nothing.to_mask(5).shape == (0, 5)


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        KeepSet(INDPTR, INDICES).indptr = INDPTR
