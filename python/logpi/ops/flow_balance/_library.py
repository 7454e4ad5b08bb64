"""flow_balance_loss as torch.library ops: what torch.compile sees. Eager calls do not come here,
because the dispatcher would cost them more than the kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logpi.ops.flow_balance.op import BACKENDS, METRICS, Call

_LIBRARY: Any = torch.library.Library("logpi", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "flow_balance_loss(str row, Tensor log_probs, Tensor ref_log_probs, Tensor old_log_probs, "
    "Tensor rewards, Tensor log_z, Tensor loss_mask, Tensor? divisor, float num_sequences, "
    "float reward_scale, float low, float high) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    "flow_balance_loss_backward(str row, Tensor loss_mask, Tensor slopes, Tensor grad_loss) "
    "-> (Tensor, Tensor)"
)
_ARGUMENTS = 1 + len(Call._fields)
_ROWS = {row.name: row for row in BACKENDS}


def flow_balance_loss(row: str, call: Call) -> tuple[Tensor, Tensor]:
    loss, metrics, _ = torch.ops.logpi.flow_balance_loss(row, *call)
    return loss, metrics


def _forward(row: str, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    out: tuple[Tensor, Tensor, Tensor] = _ROWS[row].kernels.forward(Call(*args))
    return out


def _fake_forward(_row: str, log_probs: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    new = log_probs.new_empty
    return new(()), new(len(METRICS)), new((log_probs.shape[0], 2), dtype=torch.float64)


def _backward(row: str, loss_mask: Tensor, slopes: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    grads: tuple[Tensor, Tensor]
    grads = _ROWS[row].kernels.backward(loss_mask, slopes, grad, (True, True))
    return grads


def _fake_backward(
    _row: str, loss_mask: Tensor, _slopes: Tensor, _grad: Tensor
) -> tuple[Tensor, Tensor]:
    def new(shape: torch.Size) -> Tensor:
        return loss_mask.new_empty(shape, dtype=torch.float32)

    return new(loss_mask.shape), new(loss_mask.shape[:1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.row = inputs[0]
    ctx.save_for_backward(inputs[6], output[2])
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])


def _autograd(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * _ARGUMENTS
    grads = torch.ops.logpi.flow_balance_loss_backward(ctx.row, *ctx.saved_tensors, grad_loss)
    none = (None,) * (_ARGUMENTS - 6)
    return (None, grads[0], None, None, None, grads[1], *none)


for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("flow_balance_loss", _forward, _key)
    _LIBRARY.impl("flow_balance_loss_backward", _backward, _key)
torch.library.register_fake("logpi::flow_balance_loss", _fake_forward, lib=_LIBRARY)
torch.library.register_fake("logpi::flow_balance_loss_backward", _fake_backward, lib=_LIBRARY)
torch.library.register_autograd(
    "logpi::flow_balance_loss", _autograd, setup_context=_setup_context, lib=_LIBRARY
)
