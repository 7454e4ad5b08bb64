"""Forward and backward over the kept ids of each row: a KeepSet's rows of the weight alone.

The logits of all kept entries are one float32 vector, by row and then by id. They come from the
kept rows of the weight, read one by one, or, where that is more work, out of tiles of the product.
Set side by side, row under row, they are logits that token_log_probs' kernels take as they are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from logpi.core import vocab_parallel
from logpi.core.active_rows import ActiveRows
from logpi.ops.linear_log_probs import _products as products
from logpi.ops.linear_log_probs._plan import backward_plan, workspace
from logpi.ops.linear_log_probs._tiles import Head, by_row, shaped, take_rows
from logpi.ops.linear_log_probs.op import LinearCall
from logpi.ops.token_log_probs import TokenLogProbs
from logpi.ops.token_log_probs.op import Call

# Products of a row and a kept row are limited by memory, tiles by arithmetic: so many operations
# take the time of one byte. (400 GFLOP/s and 40 GB/s; 790 TFLOP/s and 4.3 TB/s.)
_OPERATIONS_A_BYTE = {"cpu": 10}
_ON_A_GPU = 184


class Kept(NamedTuple):
    log_probs: Tensor  # [N, K]
    stats: Tensor  # [N, 3]
    values: Tensor  # [nnz], the logits of the entries


class Entries:
    """The kept entries of the active rows, by row and then by id."""

    def __init__(self, call: Call, rows: ActiveRows) -> None:
        assert call.keep_indptr is not None and call.keep_indices is not None  # noqa: PT018
        indptr = call.keep_indptr
        ids = call.keep_indices[: int(indptr[-1])].long()  # what lies behind is spare
        at = torch.arange(len(ids), device=ids.device)
        row = torch.searchsorted(indptr, at, right=True) - 1
        self.num_rows = call.num_rows
        if rows.index is not None and rows.mask is None:  # on a CPU: leave out the others'
            place = torch.full((call.num_rows,), -1).index_copy_(
                0, rows.index, torch.arange(len(rows.index))
            )
            inside = place[row] >= 0
            row, ids, self.num_rows = place[row[inside]], ids[inside], len(rows.index)
        self.vocab_size = call.vocab_size
        self.key, order = (row * call.vocab_size + ids).sort()
        self.row, self.id = row[order], ids[order]
        bounds = torch.arange(self.num_rows + 1, device=ids.device)
        self.indptr = torch.searchsorted(self.row, bounds)
        self.column = at[: len(self.row)] - self.indptr[self.row]  # its place in its row
        self.width = int((self.indptr[1:] - self.indptr[:-1]).max()) if self.num_rows else 0

    def columns_of(self, token_ids: Tensor) -> Tensor:
        """`[n, K]`: where a row's tokens are among its entries; `width` where they are not."""
        row = torch.arange(len(token_ids), device=token_ids.device)[:, None]
        key = row * self.vocab_size + token_ids
        at = torch.searchsorted(self.key, key).clamp_(max=max(len(self.key) - 1, 0))
        legal = (token_ids >= 0) & (token_ids < self.vocab_size)
        if not len(self.key):
            return torch.full_like(token_ids, self.width)
        column = self.column[at].where(self.key[at] == key, self.width)
        return column.where(legal, -1)

    def side_by_side(self, values: Tensor, top: int, bottom: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows [top, bottom) as `[n, width + 1]` with their own KeepSet; the last column is kept by
        nobody, and stands for ids outside the support."""
        first, last = int(self.indptr[top]), int(self.indptr[bottom])
        row, column = self.row[first:last] - top, self.column[first:last]
        logits = values.new_zeros(bottom - top, self.width + 1)
        logits[row, column] = values[first:last]
        return logits, self.indptr[top : bottom + 1] - first, column.int()


def forward(kernels: Any, call: LinearCall, keep: bool) -> tuple[TokenLogProbs, Kept | None]:
    head, rows = Head(call), _rows(call)
    entries, few = Entries(call.head, rows), take_rows(call.head, rows)
    values = _values(head, entries, rows.take(call.hidden_states))
    if call.process_group is not None:  # every entry is one rank's
        vocab_parallel.sum_over_ranks(values, call.process_group)
    parts = [
        kernels.forward(part, keep_stats=True)
        for part, _ in _side_by_side(call, entries, few, values)
    ]
    out = TokenLogProbs._make(
        None if fields[0] is None else torch.cat(fields)
        for fields in zip(*(part for part, _ in parts), strict=True)
    )
    stats = torch.cat([part for _, part in parts])
    whole = TokenLogProbs._make(None if field is None else rows.put(field) for field in out)
    kept = Kept(whole.log_probs, rows.put(stats), values) if keep else None
    return shaped(call, whole), kept


def backward(
    kernels: Any,
    call: LinearCall,
    kept: Any,
    grad_log_probs: Tensor | None,
    grad_entropy: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    head, rows = Head(call), _rows(call)
    log_probs, stats, values = kept
    entries, few = Entries(call.head, rows), take_rows(call.head, rows)
    g, h = by_row(call.head, grad_log_probs, grad_entropy)
    saved = [None if s is None else rows.take(s) for s in (log_probs, stats, g, h)]
    grad = torch.empty_like(values)
    for part, (top, bottom) in _side_by_side(call, entries, few, values):
        kernels.backward(
            part._replace(inplace_backward=True),
            *(None if s is None else s[top:bottom] for s in saved),
        )
        first, last = int(entries.indptr[top]), int(entries.indptr[bottom])
        grad[first:last] = part.logits[entries.row[first:last] - top, entries.column[first:last]]
    local = (entries.id >= head.begin) & (entries.id < head.end)
    if call.process_group is not None:
        grad = grad.where(local, 0)
    hidden = _grad_hidden(head, entries, grad) if needs[0] else None
    if hidden is not None:
        if call.process_group is not None:
            vocab_parallel.sum_over_ranks(hidden, call.process_group)
        hidden = rows.put(hidden.to(call.hidden_states.dtype))
    weight = bias = None
    by_id = _ById(head, entries, grad)
    if needs[1]:
        weight = by_id.sum_of(rows.take(call.hidden_states).to(head.product_dtype))
        if call.weight_grad is not None:
            call.weight_grad.add_(weight)
        weight = None if call.weight_grad is not None else weight.to(call.weight.dtype)
    if needs[2] and call.bias is not None:
        bias = by_id.sum_of(grad.new_ones(entries.num_rows, 1))[:, 0].to(call.bias.dtype)
    return hidden, weight, bias


def _rows(call: LinearCall) -> ActiveRows:
    return ActiveRows(call.head.loss_mask, call.head.num_rows)


def _side_by_side(call: LinearCall, entries: Entries, few: Call, values: Tensor) -> Any:
    """Calls of token_log_probs on the kept logits of some rows, and which rows they are."""
    ids = entries.columns_of(few.token_ids)
    room = workspace(values.device, call.workspace_bytes)
    height = max(room // (4 * (entries.width + 1)), 1)
    for top in range(0, max(entries.num_rows, 1), height):  # no rows are a part too
        bottom = min(top + height, entries.num_rows)
        logits, indptr, indices = entries.side_by_side(values, top, bottom)
        mask, t = few.loss_mask, few.temperatures
        part = few._replace(
            logits=logits,
            token_ids=ids[top:bottom].contiguous(),
            loss_mask=None if mask is None else mask[top:bottom],
            temperatures=None if t is None else t[top:bottom],
            keep_indptr=indptr,
            keep_indices=indices,
            num_rows=bottom - top,
            support_begin=0,
            support_end=entries.width + 1,
            vocab_size=entries.width + 1,
        )
        yield part, (top, bottom)


def _reads_rows(head: Head, entries: Entries) -> bool:
    """Whether reading the kept rows of the weight one by one is less work than multiplying all."""
    weight = head.call.weight
    operations = 2 * entries.num_rows * (head.end - head.begin)
    per_byte = _OPERATIONS_A_BYTE.get(weight.device.type, _ON_A_GPU)
    return len(entries.id) * (weight.element_size() + 8) < operations / per_byte


def _values(head: Head, entries: Entries, hidden: Tensor) -> Tensor:
    """`[nnz]` float32: the logits of the entries; 0 for those of other ranks."""
    call, size = head.call, hidden.shape[1]
    room = workspace(hidden.device, call.workspace_bytes)
    out = torch.zeros(len(entries.id), dtype=torch.float32, device=hidden.device)
    local = entries.id - call.vocab_start
    inside = (entries.id >= head.begin) & (entries.id < head.end)
    local = local.where(inside, 0)
    if not len(call.weight):
        return out
    if _reads_rows(head, entries):
        step = max(room // (size * 12), 1)
        for first in range(0, len(out), step):
            span = slice(first, first + step)
            pair = call.weight[local[span]].float()
            out[span] = pair.mul_(hidden[entries.row[span]]).sum(-1)
        if call.bias is not None:
            out += call.bias[local].float()
    else:
        x = hidden.to(head.product_dtype)
        for begin, end, span, weight in _spans(head, entries, len(x), room):
            tile = x.new_empty(len(x), end - begin, dtype=call.dtype)
            products.logits_into(tile, x, weight, head.bias(begin, end))
            out[span] = tile[entries.row[span], entries.id[span] - begin].float()
    return out.where(inside, 0)


def _spans(head: Head, entries: Entries, num_rows: int, room: int) -> Any:
    """Tiles of the vocabulary with the entries that lie in each."""
    columns = (head.begin, head.end)
    plan = backward_plan(columns, max(num_rows, 1), head.column_bytes, head.itemsize, room)
    order = entries.id.argsort(stable=True)
    starts = [begin for begin, _ in plan.tiles()]
    bounds = torch.tensor([*starts, head.end], device=order.device)
    at = torch.searchsorted(entries.id[order], bounds).tolist()
    for (begin, end), first, last in zip(plan.tiles(), at, at[1:], strict=False):
        yield begin, end, order[first:last], head.weight(begin, end)


def _grad_hidden(head: Head, entries: Entries, grad: Tensor) -> Tensor:
    """`[n, D]` float32: sum of grad_i weight[id_i] over a row's entries."""
    call, size = head.call, head.call.weight.shape[1]
    out = torch.zeros(entries.num_rows, size, dtype=torch.float32, device=grad.device)
    if not len(call.weight):
        return out
    if _reads_rows(head, entries):
        local = (entries.id - call.vocab_start).clamp(0, len(call.weight) - 1)
        out += F.embedding_bag(
            local, call.weight.detach(), entries.indptr, mode="sum", include_last_offset=True,
            per_sample_weights=grad.to(call.weight.dtype),
        )  # fmt: skip
        return out
    room = workspace(grad.device, call.workspace_bytes)
    for begin, end, span, weight in _spans(head, entries, entries.num_rows, room):
        tile = weight.new_zeros(entries.num_rows, end - begin)
        tile[entries.row[span], entries.id[span] - begin] = grad[span].to(tile.dtype)
        products.add_grad_hidden(out, tile, weight)
    return out


class _ById:
    """This rank's entries in the order of their ids: what sums over the rows that keep an id."""

    def __init__(self, head: Head, entries: Entries, grad: Tensor) -> None:
        order = entries.id.argsort(stable=True)
        self.row, self.grad = entries.row[order], grad[order]
        rows_of_weight = torch.arange(len(head.call.weight) + 1, device=order.device)
        self.bounds = torch.searchsorted(entries.id[order], rows_of_weight + head.call.vocab_start)

    def sum_of(self, rows: Tensor) -> Tensor:
        """`[V, ..]`: sum of grad_i rows[row_i] over the entries of each id."""
        first = self.bounds[0]  # other ranks' entries lie before and after
        bounds = self.bounds - first
        mine = slice(int(first), int(self.bounds[-1]))
        return F.embedding_bag(
            self.row[mine], rows, bounds, mode="sum", include_last_offset=True,
            per_sample_weights=self.grad[mine].to(rows.dtype),
        )  # fmt: skip
