"""Addresses of tensors to the CUDA kernels, with the device and the stream to run on."""

from __future__ import annotations

from torch import Tensor

from logpi.core import cuda
from logpi.ops.token_log_probs._native import (
    address,
    empty_outputs,
    floats,
    gradient_buffer,
    params,
    rows,
    written,
)
from logpi.ops.token_log_probs.op import Call, TokenLogProbs


def forward(call: Call, keep_stats: bool) -> tuple[TokenLogProbs, Tensor | None]:
    """The outputs, and `[.., 3]` floats for the backward if `keep_stats`."""
    out, stats = empty_outputs(call, keep_stats)
    if call.num_rows:
        kernels = cuda.launchers()
        width, kept = call.support_end - call.support_begin, call.keep_indptr is not None
        size = kernels.token_log_probs_cuda_forward_scratch(call.num_rows, width, kept)
        scratch = call.logits.new_empty(size // 4, dtype=out.log_probs.dtype) if size else None
        kernels.token_log_probs_cuda_forward(
            *params(call), *map(address, out), address(stats), address(scratch), *place(call)
        )
    return out, stats


def backward(
    call: Call,
    log_probs: Tensor,
    stats: Tensor,
    grad_log_probs: Tensor | None,
    grad_entropy: Tensor | None,
    out: Tensor | None = None,
) -> Tensor:
    """d loss / d logits: in `out` (shaped as the logits), over the logits, or in a fresh tensor."""
    out = gradient_buffer(call, out)
    if call.num_rows:
        kept = call.keep_indices
        scratch = None if kept is None else log_probs.new_empty(len(kept))
        upstream = floats(grad_log_probs), floats(grad_entropy)
        cuda.launchers().token_log_probs_cuda_backward(
            *params(call),
            *map(address, (log_probs, stats, *upstream, out)),
            *rows(out),
            address(scratch),
            *place(call),
        )
    return written(call, out)


def fused(
    call: Call,
    grad_log_probs: Tensor | None,
    grad_entropy: Tensor | None,
    out: Tensor | None = None,
) -> tuple[TokenLogProbs, Tensor]:
    """The log-probs (and entropies if asked for), and d loss / d logits, in one read of the logits.

    For upstream gradients that are known before the log-probs are, such as a policy gradient's
    first step, where the ratio is 1. One id a row, a contiguous support.
    """
    outputs, _ = empty_outputs(call, False)
    out = gradient_buffer(call, out)
    if call.num_rows:
        upstream = floats(grad_log_probs), floats(grad_entropy)
        cuda.launchers().token_log_probs_cuda_fused(
            *params(call),
            *map(address, (outputs.log_probs, outputs.entropy, *upstream, out)),
            *rows(out),
            *place(call),
        )
    return outputs, written(call, out)


def place(call: Call) -> tuple[int, int]:
    device = call.logits.device
    return cuda.index(device), cuda.stream(device)
