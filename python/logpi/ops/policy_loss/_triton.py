"""Allocates and launches the Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from logpi.ops.policy_loss import _triton_kernels as kernels
from logpi.ops.policy_loss.encoding import METRICS
from logpi.ops.policy_loss.op import Encoded
from logpi.ops.token_log_probs._triton import LANES, on_device

BLOCK = 512  # tokens a program: 64k make 128 of them, one a multiprocessor of the largest GPUs
THREADS = 128


def forward(
    call: Encoded, with_log_probs: bool, with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Loss, metrics `[9]`, and the gradients `[B, T]` that are asked for."""
    log_probs, (_, length) = call.log_probs, call.log_probs.shape
    size = log_probs.numel()
    programs = -(-size // BLOCK)
    loss = log_probs.new_empty(())
    metrics = log_probs.new_empty(METRICS)
    grad_log_probs = torch.empty_like(log_probs) if with_log_probs else None
    grad_entropy = torch.empty_like(log_probs) if with_entropy else None
    partial = log_probs.new_empty(kernels.SUMS, programs, dtype=torch.float64)
    tensors, (kind, a, b, c, estimator, kl_coef, entropy_coef) = call[:9], call[9:]
    with on_device(log_probs):
        if programs:
            kernels.loss_kernel[(programs,)](
                *(None if tensor is None else tensor.detach() for tensor in tensors),
                a,
                b,
                c,
                kl_coef,
                entropy_coef,
                size,
                length,
                grad_log_probs,
                grad_entropy,
                partial,
                programs,
                OBJECTIVE=kind,
                ESTIMATOR=estimator,
                ADVANTAGE_PER_ROW=call.advantages.shape[1] != length,
                WEIGHT_PER_ROW=len(call.weights) > 1,
                BLOCK=BLOCK,
                num_warps=THREADS // LANES,
            )
        kernels.finish_kernel[(1,)](
            partial,
            programs,
            loss,
            metrics,
            WITH_KL=call.ref_log_probs is not None,
            WITH_ENTROPY=call.entropy is not None,
            BLOCK=BLOCK,
            num_warps=THREADS // LANES,
        )
    return loss, metrics, grad_log_probs, grad_entropy
