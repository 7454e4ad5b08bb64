"""The support of a row: the vocabulary entries over which its distribution is normalised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from logpi.core import checks


@dataclass(frozen=True)
class KeepSet:
    """Per-row kept ids in CSR form, as a top-k, top-p or min-p sampler reports them.

    Row `n` of the flattened leading dimensions keeps `indices[indptr[n]:indptr[n + 1]]`, in any
    order, each id once. On a CPU the kernels check the values; on a GPU nothing reads them back.
    `indices` may be longer than that: a sampler on a GPU cannot ask how long it must be.

    Attributes:
        indptr: `[N + 1]` int64, starts at 0, never falls, ends at `len(indices)` or before.
        indices: `[nnz]` int32 ids in [0, vocab_size); those behind `indptr[-1]` are spare.
    """

    indptr: Tensor
    indices: Tensor

    def __post_init__(self) -> None:
        for name, tensor, dtype in (
            ("indptr", self.indptr, torch.int64),
            ("indices", self.indices, torch.int32),
        ):
            checks.dtype(f"KeepSet.{name}", tensor, dtype)
            if tensor.dim() != 1:
                shape = tuple(tensor.shape)
                raise ValueError(f"KeepSet.{name}: expected one dimension, got shape {shape}")
        if len(self.indptr) == 0:
            raise ValueError("KeepSet.indptr: expected [N + 1] entries, got none")
        if self.indptr.device != self.indices.device:
            raise ValueError(
                f"KeepSet: expected indptr and indices on one device, got {self.indptr.device} "
                f"and {self.indices.device}"
            )

    @classmethod
    def from_lists(cls, rows: Iterable[Sequence[int]]) -> KeepSet:
        """From one list of kept ids per row."""
        rows = [list(row) for row in rows]
        indptr = torch.zeros(len(rows) + 1, dtype=torch.int64)
        torch.cumsum(torch.tensor([len(row) for row in rows], dtype=torch.int64), 0, out=indptr[1:])
        flat = [token_id for row in rows for token_id in row]
        return cls(indptr, torch.tensor(flat, dtype=torch.int32))

    @classmethod
    def from_mask(cls, mask: Tensor) -> KeepSet:
        """From a bool mask `[.., V]`, True where kept. Reads the mask on the host."""
        checks.dtype("mask", mask, torch.bool)
        rows = mask.flatten(0, -2) if mask.dim() > 1 else mask[None]
        indptr = torch.zeros(len(rows) + 1, dtype=torch.int64, device=mask.device)
        torch.cumsum(rows.sum(-1), 0, out=indptr[1:])
        return cls(indptr, rows.nonzero()[:, 1].to(torch.int32))

    def to_mask(self, vocab_size: int) -> Tensor:
        """`[N, vocab_size]` bool, True where kept."""
        at = torch.arange(len(self.indices), device=self.indptr.device)
        rows = torch.searchsorted(self.indptr, at, right=True) - 1  # N: spare
        inside = (self.indices >= 0) & (self.indices < vocab_size)
        columns = self.indices.long().where(inside, vocab_size)
        mask = torch.zeros(
            len(self.indptr), vocab_size + 1, dtype=torch.bool, device=self.indptr.device
        )
        mask[rows, columns] = True
        return mask[:-1, :vocab_size]

    def check(self, vocab_size: int, loss_mask: Tensor | None = None) -> None:
        """Raise ValueError for the first row whose kept ids are wrong. Reads them on the host."""
        bounds = self.indptr.tolist()
        if bounds[0] != 0 or bounds[-1] > len(self.indices) or sorted(bounds) != bounds:
            raise ValueError(
                f"support.indptr: expected to rise from 0 to at most {len(self.indices)} (the "
                f"number of indices), got {bounds[0]} to {bounds[-1]}"
            )
        for row in range(len(bounds) - 1):
            if loss_mask is not None and not loss_mask[row]:
                continue
            kept = self.indices[bounds[row] : bounds[row + 1]].tolist()
            bad = [token_id for token_id in kept if not 0 <= token_id < vocab_size]
            if bad:
                raise ValueError(
                    f"support.indices: expected ids in [0, {vocab_size}), got {bad[0]} in row {row}"
                )
            if not kept:
                raise ValueError(f"support: expected at least one kept id, got none in row {row}")
            if len(set(kept)) != len(kept):
                raise ValueError(
                    f"support.indices: expected each id once, got repeats in row {row}"
                )


Support = None | slice | KeepSet
