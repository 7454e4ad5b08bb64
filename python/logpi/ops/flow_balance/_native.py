"""Addresses of tensors to the kernels in `_C`. `stride()[0]` takes half the time of `stride(0)`."""

from __future__ import annotations

import torch
from torch import Tensor

from logpi import _C
from logpi.ops.flow_balance.op import METRICS, Call

Outputs = tuple[Tensor, Tensor, Tensor]  # loss, metrics [10], slopes [B, 2] float64
Gradients = tuple[Tensor | None, Tensor | None]


def forward(call: Call) -> Outputs:
    """The loss, the metrics `[10]`, and `[B, 2]` float64 for the backward."""
    call, out = plain(call), empty_outputs(call)
    _C.flow_balance_forward(*forward_params(call, out))
    return out


def backward(
    loss_mask: Tensor, slopes: Tensor, grad_loss: Tensor, needs: tuple[bool, bool]
) -> Gradients:
    """d loss / d log_probs and d loss / d log_z, those that are needed."""
    mask, out = in_rows(loss_mask), empty_gradients(loss_mask, grad_loss, needs)
    _C.flow_balance_backward(*backward_params(mask, slopes, grad_loss, out))
    return out


def plain(call: Call) -> Call:
    """With tensors whose rows have unit stride: the same ones, unless they are transposed."""
    for x in call[:6]:
        if x.stride()[-1] != 1:
            return Call(*map(in_rows, call[:6]), *call[6:])  # type: ignore[call-arg, arg-type]
    return call


def in_rows(x: Tensor) -> Tensor:
    return x if x.stride()[-1] == 1 else x.contiguous()


def empty_outputs(call: Call) -> Outputs:
    new = call.log_z.new_empty
    return new(()), new(len(METRICS)), new((*call.log_z.shape, 2), dtype=torch.float64)


def empty_gradients(loss_mask: Tensor, grad_loss: Tensor, needs: tuple[bool, bool]) -> Gradients:
    shape, new = loss_mask.shape, grad_loss.new_empty
    return new(shape) if needs[0] else None, new(shape[:1]) if needs[1] else None


def forward_params(call: Call, out: Outputs) -> tuple[int | float, ...]:
    """The call in the order of `forward_params` in bind.h."""
    log_probs, ref, old, rewards, log_z, mask, divisor = call[:7]
    rows, columns = log_probs.shape
    return (
        rows,
        columns,
        log_probs.data_ptr(),
        log_probs.stride()[0],
        ref.data_ptr(),
        ref.stride()[0],
        old.data_ptr(),
        old.stride()[0],
        mask.data_ptr(),
        mask.stride()[0],
        rewards.data_ptr(),
        log_z.data_ptr(),
        0 if divisor is None else divisor.data_ptr(),
        call.num_sequences or max(rows, 1),
        call.reward_scale,
        call.low,
        call.high,
        torch.get_num_threads(),
        out[0].data_ptr(),
        out[1].data_ptr(),
        out[2].data_ptr(),
    )


def backward_params(
    loss_mask: Tensor, slopes: Tensor, grad_loss: Tensor, out: Gradients
) -> tuple[int, ...]:
    """In the order of `backward_params` in bind.h."""
    of_tokens, of_log_z = out
    return (
        *loss_mask.shape,
        loss_mask.data_ptr(),
        loss_mask.stride()[0],
        slopes.data_ptr(),
        grad_loss.data_ptr(),
        torch.get_num_threads(),
        0 if of_tokens is None else of_tokens.data_ptr(),
        0 if of_log_z is None else of_log_z.data_ptr(),
    )
