"""Loss and gradients a chunk of rows at a time: what every kernel row shares.

A chunk's logits are made in tiles and folded as they are made, as in linear_log_probs, but stay:
once its rows are finished, the loss tells what each log-prob and entropy is worth, the logits
become their own gradient, and two products use that up. The kernels are those of linear_log_probs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from logpi.core.active_rows import ActiveRows
from logpi.ops.linear_log_probs import _products as products
from logpi.ops.linear_log_probs import _tiles as tiles
from logpi.ops.linear_log_probs._finish import finish, new_state
from logpi.ops.linear_log_probs._plan import for_tiles, forward_plan, with_rest, workspace
from logpi.ops.linear_log_probs._tiles import Head, slice_rows, take_rows, tile_call
from logpi.ops.linear_policy_loss.op import PolicyCall
from logpi.ops.policy_loss.base import Tokens
from logpi.ops.policy_loss.loss import PolicyLoss, Sums, added, loss_of, metrics, sums
from logpi.ops.token_log_probs.op import Call

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]

# Every chunk after the first reads and writes the weight's float32 gradient, 8 V D bytes beside
# 6 V D operations a row: at 4096 rows 6 % of a GPU's time, at 512 rows 3 % of a CPU's.
_ROWS = {"cpu": 512}
_GPU_ROWS = 4096
_LINE = 64  # elements: rows of logits begin where a vector load may


def loss(kernels: Any, call: PolicyCall) -> PolicyLoss:
    """Without gradients: one product, and no more memory than linear_log_probs."""
    out, _ = tiles.forward(kernels, call.linear, keep=False)
    return loss_of(call.formula, out, call.tokens)


def loss_and_gradients(
    kernels: Any, call: PolicyCall, needs: tuple[bool, bool, bool]
) -> tuple[PolicyLoss, Grads]:
    """And the gradients of hidden states, weight and bias, those that `needs` asks for."""
    flows = _flowing(call)
    others = call.tokens.mask & ~flows
    left = ActiveRows(others, call.linear.head.num_rows)
    total, totals, grads = _with_gradient(kernels, call, flows, needs)
    if left.count(settle=True):
        told, more = _without_gradient(kernels, call, others)
        total, totals = total + told, added(totals, more)
    return PolicyLoss(total.to(call.dtype), metrics(totals, call.dtype)), grads


def _with_gradient(
    kernels: Any, call: PolicyCall, mask: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor, Sums, Grads]:
    """Loss, sums and gradients of the rows of `mask`: three products."""
    head, linear = Head(call.linear), call.linear
    rows = ActiveRows(mask, linear.head.num_rows)
    few = take_rows(linear.head, rows)
    x = rows.take(linear.hidden_states).to(head.product_dtype)
    tokens = _take(call.tokens, rows)
    plan = chunk_plan(head, len(x), linear.workspace_bytes)
    buffer = x.new_empty(plan.rows, plan.stride, dtype=linear.dtype)
    gradients = _Gradients(head, rows, plan, needs)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    totals: Sums = {}
    for top in range(0, max(len(x), 1), plan.rows):  # at least once: gradients of 0 are written too
        if top and top >= rows.count(settle=True):
            break
        logits, state, targets = _fold_chunk(kernels, head, rows, few, x, buffer, plan, top)
        bottom = top + len(logits)
        chunk = tile_call(slice_rows(few, top, bottom), logits, head.begin, head.end)
        out, stats = finish(chunk, state, targets, logits.shape[1], kernels.REFERENCE)
        loss, more, worth = _worth(call, chunk, out, _slice(tokens, top, bottom))
        total, totals = total + loss, added(totals, more)
        kernels.backward(chunk, out.log_probs, stats, *worth)  # the logits are now their gradient
        gradients.add(logits, x, top, alone=rows.count(settle=True) <= plan.rows)
    return total, totals, gradients.finished()


def _fold_chunk(
    kernels: Any,
    head: Head,
    rows: ActiveRows,
    few: Call,
    x: Tensor,
    buffer: Tensor,
    plan: ChunkPlan,
    top: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The logits `[n, W]` of the chunk from row `top` on, in `buffer`; their state and targets.

    On a GPU n is known only once a few tiles are queued; those were made for every row there is.
    """
    bottom = min(top + plan.rows, len(x))
    operand = tiles.padded(x[top:bottom], plan.block)
    state, targets = new_state(slice_rows(few, top, bottom))
    n = bottom - top
    for number, (begin, end) in enumerate(plan.tiles(head)):
        n = min(n, max(rows.count(settle=number >= tiles.SETTLED_AFTER) - top, 0))
        high = -(-n // plan.block) * plan.block
        tile = buffer[:high, begin - head.begin : end - head.begin]
        weight, bias = head.weight(begin, end), head.bias(begin, end)
        products.logits_into(tile, operand[:high], weight, bias)
        part = tile_call(slice_rows(few, top, top + n), tile[:n], begin, end)
        kernels.fold(part, state[:n], targets[:n])
    return buffer[:n, : head.end - head.begin], state[:n], targets[:n]


def _flowing(call: PolicyCall) -> Tensor:
    """`[N]` bool: rows to whose log-prob or entropy a gradient may flow."""
    objective, kl, entropy_coef = call.formula
    flows = call.tokens.mask & (call.tokens.weights != 0)
    if entropy_coef or (kl is not None and kl.coef) or not objective.zero_at_zero_advantage:
        return flows
    return flows & (call.tokens.advantages != 0)


def _worth(
    call: PolicyCall, chunk: Call, out: Any, tokens: Tokens
) -> tuple[Tensor, Sums, tuple[Tensor, Tensor | None]]:
    """A chunk's loss and sums; d loss / d log-prob `[n, 1]` and d loss / d entropy `[n]`."""
    log_probs, entropy = out.log_probs[:, 0].detach(), out.entropy.detach()
    if chunk.loss_mask is not None:  # on a GPU rows that take no part are NaN
        log_probs = log_probs.where(chunk.loss_mask, 0.0)
        entropy = entropy.where(chunk.loss_mask, 0.0)
    with torch.enable_grad():
        leaves = [log_probs.requires_grad_()]
        if call.formula.entropy_coef:
            leaves.append(entropy.requires_grad_())
        loss, totals = sums(call.formula, log_probs, entropy, tokens)
        grads = torch.autograd.grad(loss, leaves)
    return loss.detach(), totals, (grads[0][:, None], grads[1] if len(grads) > 1 else None)


def _without_gradient(kernels: Any, call: PolicyCall, mask: Tensor) -> tuple[Tensor, Sums]:
    """Loss and sums of the rows of `mask`: one product."""
    linear = call.linear._replace(head=call.linear.head._replace(loss_mask=mask))
    out, _ = tiles.forward(kernels, linear, keep=False)
    assert out.entropy is not None
    tokens = call.tokens._replace(mask=mask, weights=call.tokens.weights.where(mask, 0.0))
    return sums(call.formula, out.log_probs.reshape(-1), out.entropy.reshape(-1), tokens)


def _take(tokens: Tokens, rows: ActiveRows) -> Tokens:
    taken = Tokens._make(None if t is None else rows.take(t) for t in tokens)
    return taken if rows.mask is None else taken._replace(mask=rows.mask)


def _slice(tokens: Tokens, top: int, bottom: int) -> Tokens:
    return Tokens._make(None if t is None else t[top:bottom] for t in tokens)


class ChunkPlan(NamedTuple):
    """Chunks of `rows` rows, made in tiles of `width` columns; a row of logits takes `stride`."""

    rows: int
    width: int
    stride: int
    block: int  # tiles.ROW_BLOCK, where a chunk has so many rows

    def tiles(self, head: Head) -> Iterator[tuple[int, int]]:
        for begin in range(head.begin, head.end, self.width):
            yield begin, min(begin + self.width, head.end)


def chunk_plan(head: Head, num_rows: int, asked: int | None) -> ChunkPlan:
    """Tiles are those of linear_log_probs, and so are the bits of the log-probs."""
    device, columns = head.call.hidden_states.device, (head.begin, head.end)
    room = workspace(device, asked)
    width = forward_plan(columns, head.column_bytes, head.itemsize, room).width
    stride = -(-(head.end - head.begin) // _LINE) * _LINE
    rows = _ROWS.get(device.type, _GPU_ROWS)
    if asked is not None:
        row_bytes, beside = stride * head.itemsize, width * head.column_bytes
        rows = (for_tiles(asked) - beside) // row_bytes
        if rows < 1:
            least = with_rest(row_bytes + beside)
            raise ValueError(f"workspace_bytes: expected at least {least}, got {asked}")
    block = tiles.ROW_BLOCK if device.type == "cpu" else 1
    rows = min(rows, -(-max(num_rows, 1) // block) * block)
    block = block if rows >= block else 1
    return ChunkPlan(rows // block * block, width, stride, block)


class _Gradients:
    """The three gradients as chunks add to them."""

    def __init__(
        self, head: Head, rows: ActiveRows, plan: ChunkPlan, needs: tuple[bool, bool, bool]
    ) -> None:
        call, self.head, self.rows, self.plan = head.call, head, rows, plan
        hidden, size = call.hidden_states, len(call.hidden_states)
        self.wants_weight, self.adds = needs[1], call.weight_grad is not None
        self.hidden: Tensor | None = None
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        self.started = False
        if needs[0]:
            size = size if rows.index is None else len(rows.index)
            self.hidden = hidden.new_empty(size, hidden.shape[1])
        if needs[2] and call.bias is not None:
            wide = torch.promote_types(torch.float32, call.bias.dtype)
            self.bias = torch.zeros_like(call.bias, dtype=wide)

    def add(self, grad: Tensor, x: Tensor, top: int, alone: bool) -> None:
        """A chunk's: `grad [n, W]` of the logits of `x[top : top + n]`. `alone`: the only one."""
        used = slice(self.head.begin, self.head.end)
        bottom = top + len(grad)
        if self.bias is not None:
            self.bias[used] += grad.sum(0, dtype=self.bias.dtype)
        if self.wants_weight:
            self._add_weight(grad, x[top:bottom], used, alone)
        if self.hidden is not None:
            self._write_hidden(self.hidden[top:bottom], grad)

    def _add_weight(self, grad: Tensor, x: Tensor, used: slice, alone: bool) -> None:
        call = self.head.call
        if self.weight is None:
            if call.weight_grad is not None:
                self.weight = call.weight_grad
            else:
                narrow = call.weight.dtype
                dtype = narrow if alone else torch.promote_types(torch.float32, narrow)
                self.weight = torch.empty_like(call.weight, dtype=dtype)
                self.weight[: used.start].zero_()
                self.weight[used.stop :].zero_()
        add = self.adds or self.started
        self.started = True
        into = self.weight[used]
        as_is = grad.dtype == x.dtype and (into.dtype == x.dtype or products.widens(x))
        for begin, end in self._pieces(as_is):
            piece = grad[:, begin:end].to(x.dtype)
            products.grad_weight_into(into[begin:end], piece, x, add)

    def _write_hidden(self, out: Tensor, grad: Tensor) -> None:
        head = self.head
        if grad.dtype == head.product_dtype and not head.casts:
            products.grad_hidden_into(out, grad, head.weight(head.begin, head.end))
            return
        wide = torch.promote_types(torch.float32, out.dtype)
        total = torch.zeros(out.shape, dtype=wide, device=out.device)
        for begin, end in self._pieces(False):
            piece = grad[:, begin:end].to(head.product_dtype)
            weight = head.weight(head.begin + begin, head.begin + end)
            products.add_grad_hidden(total, piece, weight)
        out.copy_(total)

    def _pieces(self, whole: bool) -> Iterator[tuple[int, int]]:
        """Of the columns, from 0: a tile each where something has to be cast, else all at once."""
        if whole:
            yield 0, self.head.end - self.head.begin
            return
        for begin, end in self.plan.tiles(self.head):
            yield begin - self.head.begin, end - self.head.begin

    def finished(self) -> Grads:
        call, hidden, weight, bias = self.head.call, self.hidden, self.weight, self.bias
        return (
            None if hidden is None else self.rows.put(hidden),
            None if weight is None or self.adds else weight.to(call.weight.dtype),
            None if bias is None or call.bias is None else bias.to(call.bias.dtype),
        )
