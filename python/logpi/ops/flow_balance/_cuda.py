"""Addresses of tensors to the CUDA kernels, with the device and the stream to run on."""

from __future__ import annotations

import torch
from torch import Tensor

from logpi.core import cuda
from logpi.ops.flow_balance._native import (
    Gradients,
    Outputs,
    backward_params,
    empty_gradients,
    empty_outputs,
    forward_params,
    in_rows,
    plain,
)
from logpi.ops.flow_balance.op import Call


def forward(call: Call) -> Outputs:
    """The loss, the metrics `[10]`, and `[B, 2]` float64 for the backward."""
    call, out, kernels = plain(call), empty_outputs(call), cuda.launchers()
    size = kernels.flow_balance_cuda_scratch(*call.log_probs.shape)
    scratch = call.log_z.new_empty(size // 8, dtype=torch.float64)
    kernels.flow_balance_cuda_forward(
        *forward_params(call, out), scratch.data_ptr(), *place(call.log_z.device)
    )
    return out


def backward(
    loss_mask: Tensor, slopes: Tensor, grad_loss: Tensor, needs: tuple[bool, bool]
) -> Gradients:
    """d loss / d log_probs and d loss / d log_z, those that are needed."""
    mask, out = in_rows(loss_mask), empty_gradients(loss_mask, grad_loss, needs)
    cuda.launchers().flow_balance_cuda_backward(
        *backward_params(mask, slopes, grad_loss, out), *place(mask.device)
    )
    return out


def place(device: torch.device) -> tuple[int, int]:
    return cuda.index(device), cuda.stream(device)
