"""Forward and backward over tiles of the vocabulary: what every kernel row shares.

A row brings three things: `fold(call, state, targets)` takes a tile of logits into the sums of its
rows, `backward(call, log_probs, stats, grad_log_probs, grad_entropy)` writes a tile's gradient over
it, and `REFERENCE` says which field of the state that backward takes distances to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from logpi.core import vocab_parallel
from logpi.core.active_rows import ActiveRows
from logpi.ops.linear_log_probs import _products as products
from logpi.ops.linear_log_probs._finish import finish, merge_ranks, new_state
from logpi.ops.linear_log_probs._plan import Plan, backward_plan, forward_plan, workspace
from logpi.ops.linear_log_probs.op import LinearCall
from logpi.ops.token_log_probs import TokenLogProbs
from logpi.ops.token_log_probs.op import Call

# A CPU's GEMM takes other ways through a few last rows, with other roundings. In multiples of so
# many a row of logits has the same bits in any batch.
ROW_BLOCK = 16
SETTLED_AFTER = 2  # tiles queued before the host waits for the number of rows


class Kept(NamedTuple):
    """What the forward leaves to the backward: outputs of all rows, and whole tiles of logits."""

    log_probs: Tensor  # [N, K]
    stats: Tensor  # [N, 3]
    tiles: list[tuple[int, int, Tensor]]  # first and last column, logits of the active rows


class Head:
    """The weight of a call as its tiles need it: rows by token id, in the dtype of the products."""

    def __init__(self, call: LinearCall) -> None:
        self.call = call
        size, start = len(call.weight), call.vocab_start
        self.begin = max(call.head.support_begin, start)
        self.end = max(min(call.head.support_end, start + size), self.begin)
        mixed, same = call.dtype != call.weight.dtype, call.hidden_states.dtype == call.weight.dtype
        self.widens = mixed and same and products.widens(call.weight)
        self.casts = mixed and not self.widens
        self.product_dtype = call.weight.dtype if self.widens else call.dtype
        self.itemsize = call.dtype.itemsize
        # beside a column's logits: its cast row of the weight
        self.column_bytes = call.weight.shape[1] * self.itemsize if self.casts else 0

    def weight(self, begin: int, end: int) -> Tensor:
        rows = self.call.weight[begin - self.call.vocab_start : end - self.call.vocab_start]
        return rows.to(self.product_dtype) if self.casts else rows

    def bias(self, begin: int, end: int) -> Tensor | None:
        bias, start = self.call.bias, self.call.vocab_start
        return None if bias is None else bias[begin - start : end - start].to(self.call.dtype)


def forward(kernels: Any, call: LinearCall, keep: bool) -> tuple[TokenLogProbs, Kept | None]:
    """The outputs with the caller's leading dims; what the backward needs, if `keep`."""
    head = Head(call)
    rows = ActiveRows(call.head.loss_mask, call.head.num_rows)
    few = take_rows(call.head, rows)
    x = rows.take(call.hidden_states).to(head.product_dtype)
    state, targets = new_state(few)
    tiles = _fold_tiles(kernels, head, rows, few, x, state, targets, call.retain_bytes * keep)
    num_entries: Any = head.end - head.begin
    if call.process_group is not None:
        state, targets, num_entries = merge_ranks(
            few, state, targets, num_entries, call.process_group
        )
    out, stats = finish(few, state, targets, num_entries, kernels.REFERENCE)
    whole = TokenLogProbs._make(None if field is None else rows.put(field) for field in out)
    kept = Kept(whole.log_probs, rows.put(stats), tiles) if keep else None
    return shaped(call, whole), kept


def shaped(call: LinearCall, out: TokenLogProbs) -> TokenLogProbs:
    """`[N, K]` and `[N]` with the caller's leading dims."""
    lead, ids = call.head.logits.shape[:-1], call.head.token_ids.shape
    return TokenLogProbs._make(
        None if field is None else field.view(ids if field.dim() == 2 else lead) for field in out
    )


def _fold_tiles(
    kernels: Any, head: Head, rows: ActiveRows, few: Call, x: Tensor, state: Tensor,
    targets: Tensor, retain: int,
) -> list[tuple[int, int, Tensor]]:  # fmt: skip
    """Every tile into the state of its rows; returns those that are retained."""
    room = workspace(x.device, head.call.workspace_bytes)
    plan = forward_plan((head.begin, head.end), head.column_bytes, head.itemsize, room)
    block = ROW_BLOCK if x.device.type == "cpu" else 1
    whole_rows = -(-len(x) // block) * block
    height = max(min(plan.rows // block * block, whole_rows), block)
    buffer = x.new_empty(height * min(plan.width, head.end - head.begin), dtype=head.call.dtype)
    chunks = [(top, min(top + height, len(x))) for top in range(0, len(x), height)]
    operands = {top: padded(x[top:bottom], block) for top, bottom in chunks}
    retained: list[tuple[int, int, Tensor]] = []
    for number, (begin, end) in enumerate(plan.tiles()):
        active = rows.count(settle=number >= SETTLED_AFTER)
        weight, bias, width = head.weight(begin, end), head.bias(begin, end), end - begin
        retain = retain - whole_rows * width * head.itemsize if number == len(retained) else -1
        whole = None
        if retain >= 0:  # the first tiles, up to one that does not fit
            whole = x.new_empty(whole_rows, width, dtype=head.call.dtype)
            retained.append((begin, end, whole[: len(x)]))
        for top, bottom in chunks:
            if top >= active:
                break
            operand = operands[top]
            tile = buffer[: len(operand) * width].view(len(operand), width)
            tile = tile if whole is None else whole[top : top + len(operand)]
            products.logits_into(tile, operand, weight, bias)
            part = slice_rows(few, top, bottom)
            part = tile_call(part, tile[: bottom - top], begin, end)
            kernels.fold(part, state[top:bottom], targets[top:bottom])
    return retained


def padded(x: Tensor, block: int) -> Tensor:
    """`x` with rows of 0 up to a multiple of `block`."""
    missing = -len(x) % block
    return torch.cat((x, x.new_zeros(missing, x.shape[1]))) if missing else x


def backward(
    kernels: Any,
    call: LinearCall,
    kept: Any,
    grad_log_probs: Tensor | None,
    grad_entropy: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of hidden states, weight and bias, those that `needs` asks for."""
    head, num_rows = Head(call), call.head.num_rows
    log_probs, stats, tiles = kept
    g, h = by_row(call.head, grad_log_probs, grad_entropy)
    rows = ActiveRows(_flowing(call.head, g, h), num_rows)
    gradients = Gradients(head, rows, needs)
    few = take_rows(call.head, rows)
    upstream = [None if grad is None else rows.take(grad) for grad in (g, h)]
    saved = (rows.take(log_probs), rows.take(stats), *upstream)
    x = rows.take(call.hidden_states).to(head.product_dtype)

    def use(tile: Tensor, begin: int, end: int, weight: Tensor) -> None:
        part = tile_call(slice_rows(few, 0, len(tile)), tile, begin, end)
        kernels.backward(part, *(None if s is None else s[: len(tile)] for s in saved))
        gradients.add(tile, x, weight, begin, end)

    done = head.begin
    before = ActiveRows(call.head.loss_mask, num_rows).positions_of(rows) if tiles else None
    while tiles:  # used up: a second backward makes them again
        begin, end, tile = tiles.pop(0)
        use(
            tile if before is None else tile.index_select(0, before),
            begin,
            end,
            head.weight(begin, end),
        )
        done = end
    if rows.count() and done < head.end:
        room = workspace(x.device, call.workspace_bytes)
        plan = _backward_plan(head, len(x), room)
        buffer = x.new_empty(len(x) * min(plan.width, head.end - done), dtype=call.dtype)
        for number, (begin, end) in enumerate(plan.tiles(done)):
            active = rows.count(settle=number >= SETTLED_AFTER)
            weight = head.weight(begin, end)
            tile = buffer[: active * (end - begin)].view(active, end - begin)
            products.logits_into(tile, x[:active], weight, head.bias(begin, end))
            use(tile, begin, end, weight)
    return gradients.finished()


def _backward_plan(head: Head, num_rows: int, room: int) -> Plan:
    return backward_plan((head.begin, head.end), num_rows, head.column_bytes, head.itemsize, room)


class Gradients:
    """The three gradients as tiles add to them."""

    def __init__(self, head: Head, rows: ActiveRows, needs: tuple[bool, bool, bool]) -> None:
        call, self.head, self.rows = head.call, head, rows
        hidden, weight, bias = call.hidden_states, call.weight, call.bias
        device, size = hidden.device, (len(hidden) if rows.index is None else len(rows.index))
        self.hidden = self.weight = self.bias = None
        self.adds = call.weight_grad is not None
        if needs[0]:
            wide = torch.promote_types(torch.float32, hidden.dtype)
            self.hidden = torch.zeros(size, hidden.shape[1], dtype=wide, device=device)
        if needs[1]:
            self.weight = call.weight_grad if self.adds else torch.empty_like(weight)
        if needs[2] and bias is not None:
            self.bias = torch.empty_like(bias)
        used = slice(head.begin - call.vocab_start, head.end - call.vocab_start)
        for grad in (None if self.adds else self.weight, self.bias):
            if grad is None:
                continue
            if not rows.count():
                grad.zero_()
            grad[: used.start].zero_()
            grad[used.stop :].zero_()

    def add(self, grad: Tensor, x: Tensor, weight: Tensor, begin: int, end: int) -> None:
        """A tile's: `grad [n, w]` of its logits, for columns [begin, end)."""
        first, last, n = (
            begin - self.head.call.vocab_start,
            end - self.head.call.vocab_start,
            len(grad),
        )
        if self.bias is not None:
            self.bias[first:last] = grad.sum(0, dtype=torch.float32)
        if grad.dtype != x.dtype:  # float32 logits of 16-bit operands, on a GPU
            grad = grad.to(x.dtype)
        if self.weight is not None:
            products.grad_weight_into(self.weight[first:last], grad, x[:n], self.adds)
        if self.hidden is not None:
            products.add_grad_hidden(self.hidden[:n], grad, weight)

    def finished(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        call, hidden = self.head.call, self.hidden
        if hidden is not None:
            if call.process_group is not None:
                vocab_parallel.sum_over_ranks(hidden, call.process_group)
            hidden = self.rows.put(hidden.to(call.hidden_states.dtype))
        return hidden, None if self.adds else self.weight, self.bias


def by_row(
    head: Call, grad_log_probs: Tensor | None, grad_entropy: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The upstream gradients as float32 `[N, K]` and `[N]`."""
    shape = head.num_rows, head.ids_per_row  # -1 would be ambiguous with no rows
    return (
        None if grad_log_probs is None else grad_log_probs.reshape(shape).float(),
        None if grad_entropy is None else grad_entropy.reshape(shape[0]).float(),
    )


def _flowing(head: Call, g: Tensor | None, h: Tensor | None) -> Tensor | None:
    """`[N]` bool: rows to which a gradient other than 0 flows."""
    flows = None
    if g is not None:
        flows = (g != 0).any(-1)
    if h is not None:
        flows = h != 0 if flows is None else flows | (h != 0)
    return flows if head.loss_mask is None or flows is None else flows & head.loss_mask


def take_rows(call: Call, rows: ActiveRows) -> Call:
    """The call on the active rows alone."""
    ids = call.token_ids.view(call.num_rows, call.ids_per_row)
    if rows.index is None:
        return call._replace(token_ids=ids, loss_mask=None)
    t = call.temperatures
    return call._replace(
        token_ids=rows.take(ids),
        loss_mask=rows.mask,
        temperatures=None if t is None else t.index_select(0, rows.index),
        num_rows=len(rows.index),
    )


def slice_rows(call: Call, top: int, bottom: int) -> Call:
    mask, t = call.loss_mask, call.temperatures
    return call._replace(
        token_ids=call.token_ids[top:bottom],
        loss_mask=None if mask is None else mask[top:bottom],
        temperatures=None if t is None else t[top:bottom],
        num_rows=bottom - top,
    )


def tile_call(call: Call, tile: Tensor, begin: int, end: int) -> Call:
    return call._replace(
        logits=tile, support_begin=begin, support_end=end, first_column=begin, inplace_backward=True
    )
