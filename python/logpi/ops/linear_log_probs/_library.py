"""linear_log_probs as torch.library ops: what torch.compile sees. Eager calls do not come here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logpi.ops.linear_log_probs.op import BACKENDS, LinearCall, check_values, route
from logpi.ops.token_log_probs import TokenLogProbs
from logpi.ops.token_log_probs.op import Call

_LIBRARY: Any = torch.library.Library("logpi", "FRAGMENT")  # type: ignore[no-untyped-call]
_CALL = (
    "str row, Tensor hidden_states, Tensor weight, Tensor? bias, SymInt[] lead, SymInt columns, "
    "ScalarType dtype, int? workspace_bytes, Tensor token_ids, Tensor? loss_mask, "
    "Tensor? temperatures, Tensor? keep_indptr, Tensor? keep_indices, SymInt num_rows, "
    "SymInt ids_per_row, float temperature, SymInt support_begin, SymInt support_end, "
    "SymInt vocab_size, float softcap, float logit_scale, bool entropy, bool collision, bool lse, "
    "bool top1, bool mean_logit"
)
_ARGUMENTS = 26
# Six fields (empty where not asked for), then what the backward needs: stats, kept logits.
_LIBRARY.define(
    f"linear_log_probs({_CALL}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    f"linear_log_probs_backward({_CALL}, Tensor log_probs, Tensor stats, Tensor kept, "
    "Tensor? grad_log_probs, Tensor? grad_entropy, bool[] needs) -> (Tensor, Tensor, Tensor)"
)
_ROWS = {row.name: row for row in BACKENDS}


def linear_log_probs(row: str, call: LinearCall) -> TokenLogProbs:
    head = call.head
    for name, asked, expected in (
        ("retain_bytes", call.retain_bytes, 0),
        ("process_group", call.process_group, None),
        ("weight_grad", call.weight_grad, None),
    ):
        if asked != expected:
            raise ValueError(f"{name}: expected {expected} under torch.compile, got {asked}")
    out = torch.ops.logpi.linear_log_probs(
        row, *call[:3], head.logits.shape[:-1], head.logits.shape[-1], call.dtype,
        call.workspace_bytes, *head[1:-2],
    )[:6]  # fmt: skip
    wanted = (True, head.entropy, head.collision, head.lse, head.top1, head.mean_logit)
    return TokenLogProbs._make(
        field if want else None for field, want in zip(out, wanted, strict=True)
    )


def _call(args: tuple[Any, ...]) -> tuple[Any, LinearCall]:
    """The backend row and the call of an op's arguments."""
    row, hidden, weight, bias, lead, columns, dtype, workspace_bytes, *head = args
    absent = hidden.new_empty((), dtype=dtype).expand(*lead, columns)
    call = Call._make((absent, *head, False, 0))
    return _ROWS[row], LinearCall(
        hidden, weight, bias, call, dtype, 0, None, 0, workspace_bytes, None
    )


def _forward(*args: Any) -> tuple[Tensor, ...]:
    row, call = _call(args)
    if call.hidden_states.device.type == "cpu":
        check_values(call.head)
    out, kept = route(call).forward(row.kernels, call, keep=True)
    values = kept[2] if call.head.keep_indptr is not None else None
    fields = (*out, kept[1], values)  # which may not share memory
    return tuple(call.hidden_states.new_empty(0) if field is None else field for field in fields)


def _fake_forward(*args: Any) -> tuple[Tensor, ...]:
    _, call = _call(args)
    head, new = call.head, call.hidden_states.new_empty
    ids, lead = head.token_ids.shape, head.logits.shape[:-1]

    def floats(want: bool, shape: Any) -> Tensor:
        return new(shape, dtype=torch.float32) if want else new(0)

    return (
        floats(True, ids),
        floats(head.entropy, lead),
        floats(head.collision, lead),
        floats(head.lse, lead),
        new(ids, dtype=torch.bool) if head.top1 else new(0),
        floats(head.mean_logit, lead),
        floats(True, (head.num_rows, 3)),
        # as many as are kept in rows that are not masked: known when it runs
        new(torch.library.get_ctx().new_dynamic_size(), dtype=torch.float32)
        if head.keep_indices is not None
        else new(0),
    )


def _backward(*args: Any) -> tuple[Tensor, ...]:
    row, call = _call(args[:_ARGUMENTS])
    log_probs, stats, kept, grad_log_probs, grad_entropy, needs = args[_ARGUMENTS:]
    kept = [] if call.head.keep_indptr is None else kept
    saved = log_probs.reshape(call.head.num_rows, -1), stats, kept
    grads = route(call).backward(row.kernels, call, saved, grad_log_probs, grad_entropy, needs)
    return tuple(call.hidden_states.new_empty(0) if grad is None else grad for grad in grads)


def _fake_backward(*args: Any) -> tuple[Tensor, ...]:
    _, hidden, weight, bias, *_rest = args
    none, needs = hidden.new_empty(0), args[-1]
    return (
        torch.empty_like(hidden) if needs[0] else none,
        torch.empty_like(weight) if needs[1] else hidden.new_empty(0),
        torch.empty_like(bias) if needs[2] and bias is not None else hidden.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[1:4], *inputs[8:13], output[0], *output[6:])
    ctx.others = inputs[0], inputs[4:8], inputs[13:]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[2:])


def _autograd(
    ctx: Any, grad_log_probs: Tensor | None, grad_entropy: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    if grad_log_probs is None and grad_entropy is None:
        return (None,) * _ARGUMENTS
    *tensors, log_probs, stats, kept = ctx.saved_tensors
    row, shapes, settings = ctx.others
    args = (row, *tensors[:3], *shapes, *tensors[3:], *settings)
    if not settings[8]:  # entropy was not asked for
        grad_entropy = None
    needs = list(ctx.needs_input_grad[1:4])
    grads = torch.ops.logpi.linear_log_probs_backward(
        *args, log_probs, stats, kept, grad_log_probs, grad_entropy, needs
    )
    wanted = (grad if need else None for grad, need in zip(grads, needs, strict=True))
    return (None, *wanted, *(None,) * (_ARGUMENTS - 4))


for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("linear_log_probs", _forward, _key)
    _LIBRARY.impl("linear_log_probs_backward", _backward, _key)
torch.library.register_fake("logpi::linear_log_probs", _fake_forward, lib=_LIBRARY)
torch.library.register_fake("logpi::linear_log_probs_backward", _fake_backward, lib=_LIBRARY)
torch.library.register_autograd(
    "logpi::linear_log_probs", _autograd, setup_context=_setup_context, lib=_LIBRARY
)
