"""Addresses of tensors to the kernel in `_C`."""

from __future__ import annotations

import torch
from torch import Tensor

from logpi import _C
from logpi.ops.policy_loss.encoding import METRICS
from logpi.ops.policy_loss.op import Encoded


def forward(
    call: Encoded, with_log_probs: bool, with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Loss, metrics `[9]`, and the gradients `[B, T]` that are asked for."""
    log_probs, (batch, length) = call.log_probs, call.log_probs.shape
    loss = log_probs.new_empty(())
    metrics = log_probs.new_empty(METRICS)
    grad_log_probs = torch.empty_like(log_probs) if with_log_probs else None
    grad_entropy = torch.empty_like(log_probs) if with_entropy else None
    _C.policy_loss(
        *(0 if tensor is None else tensor.data_ptr() for tensor in call[:9]),
        *call[9:],
        batch,
        length,
        call.advantages.shape[1] != length,
        len(call.weights) > 1,
        *(0 if t is None else t.data_ptr() for t in (grad_log_probs, grad_entropy, loss, metrics)),
        torch.get_num_threads(),
    )
    return loss, metrics, grad_log_probs, grad_entropy
