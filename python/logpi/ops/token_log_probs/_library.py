"""token_log_probs as torch.library ops: what torch.compile sees. Eager calls do not come here,
because the dispatcher would cost them more than the kernel of a small call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logpi.ops.token_log_probs.op import BACKENDS, Call, TokenLogProbs

_LIBRARY: Any = torch.library.Library("logpi", "FRAGMENT")  # type: ignore[no-untyped-call]
_CALL = (
    "str row, Tensor logits, Tensor token_ids, Tensor? loss_mask, Tensor? temperatures, "
    "Tensor? keep_indptr, Tensor? keep_indices, SymInt num_rows, SymInt ids_per_row, "
    "float temperature, SymInt support_begin, SymInt support_end, SymInt vocab_size, "
    "float softcap, float logit_scale, bool entropy, bool collision, bool lse, bool top1, "
    "bool mean_logit, bool inplace_backward, SymInt first_column"
)
# Six fields (empty where not asked for), then the [.., 3] that the backward needs.
_LIBRARY.define(
    f"token_log_probs({_CALL}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    f"token_log_probs_backward({_CALL}, Tensor log_probs, Tensor stats, Tensor? grad_log_probs, "
    "Tensor? grad_entropy) -> Tensor"
)
_ARGUMENTS = 1 + len(Call._fields)
_ROWS = {row.name: row for row in BACKENDS}


def token_log_probs(row: str, call: Call) -> TokenLogProbs:
    out = torch.ops.logpi.token_log_probs(row, *call)[:6]
    wanted = (True, call.entropy, call.collision, call.lse, call.top1, call.mean_logit)
    return TokenLogProbs._make(
        field if want else None for field, want in zip(out, wanted, strict=True)
    )


def _forward(row: str, *args: Any) -> tuple[Tensor, ...]:
    call = Call(*args)
    out, stats = _ROWS[row].kernels.forward(call, keep_stats=True)
    return tuple(call.logits.new_empty(0) if field is None else field for field in (*out, stats))


def _fake_forward(_row: str, *args: Any) -> tuple[Tensor, ...]:
    call = Call(*args)
    ids, lead, new = call.token_ids.shape, call.logits.shape[:-1], call.logits.new_empty

    def floats(want: bool, shape: Any) -> Tensor:
        return new(shape, dtype=torch.float32) if want else new(0)

    return (
        floats(True, ids),
        floats(call.entropy, lead),
        floats(call.collision, lead),
        floats(call.lse, lead),
        new(ids, dtype=torch.bool) if call.top1 else new(0),
        floats(call.mean_logit, lead),
        floats(True, (*lead, 3)),
    )


def _backward(row: str, *args: Any) -> Tensor:
    call, saved = Call(*args[: _ARGUMENTS - 1]), args[_ARGUMENTS - 1 :]
    grad: Tensor = _ROWS[row].kernels.backward(call, *saved)
    return grad


def _fake_backward(_row: str, logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.row, tensors, ctx.settings = inputs[0], inputs[1:7], inputs[7:]
    ctx.save_for_backward(*tensors, output[0], output[6])
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[2:])


def _autograd(
    ctx: Any, grad_log_probs: Tensor | None, grad_entropy: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    if grad_log_probs is None and grad_entropy is None:
        return (None,) * _ARGUMENTS
    *tensors, log_probs, stats = ctx.saved_tensors
    if not Call(*tensors, *ctx.settings).entropy:
        grad_entropy = None
    grad = torch.ops.logpi.token_log_probs_backward(
        ctx.row, *tensors, *ctx.settings, log_probs, stats, grad_log_probs, grad_entropy
    )
    return (None, grad, *(None,) * (_ARGUMENTS - 2))


for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("token_log_probs", _forward, _key)
    _LIBRARY.impl("token_log_probs_backward", _backward, _key)
torch.library.register_fake("logpi::token_log_probs", _fake_forward, lib=_LIBRARY)
torch.library.register_fake("logpi::token_log_probs_backward", _fake_backward, lib=_LIBRARY)
torch.library.register_autograd(
    "logpi::token_log_probs", _autograd, setup_context=_setup_context, lib=_LIBRARY
)
