"""Addresses of tensors to the kernels in `_C`."""

from __future__ import annotations

import torch
from torch import Tensor

from logpi import _C
from logpi.core.strides import leading_rows
from logpi.ops.token_log_probs.op import Call, TokenLogProbs

_FLOAT = torch.float32
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # core/dtype.h


def forward(call: Call, keep_stats: bool) -> tuple[TokenLogProbs, Tensor | None]:
    """The outputs, and `[.., 3]` floats for the backward if `keep_stats`."""
    new, lead = call.logits.new_empty, call.logits.shape[:-1]
    # empty_like takes 0.6 us where new_empty takes 1.5; as much as the kernel of a small call.
    log_probs = torch.empty_like(call.token_ids, dtype=_FLOAT)
    row = log_probs if log_probs.dim() == len(lead) else new(lead, dtype=_FLOAT)
    entropy = torch.empty_like(row) if call.entropy else None
    collision = torch.empty_like(row) if call.collision else None
    lse = torch.empty_like(row) if call.lse else None
    top1 = torch.empty_like(call.token_ids, dtype=torch.bool) if call.top1 else None
    mean_logit = torch.empty_like(row) if call.mean_logit else None
    stats = new((*lead, 3), dtype=_FLOAT) if keep_stats else None
    if call.num_rows:
        _C.token_log_probs_forward(
            *_params(call),
            log_probs.data_ptr(),
            _address(entropy),
            _address(collision),
            _address(lse),
            _address(top1),
            _address(mean_logit),
            _address(stats),
        )
    return TokenLogProbs(log_probs, entropy, collision, lse, top1, mean_logit), stats


def backward(
    call: Call,
    log_probs: Tensor,
    stats: Tensor,
    grad_log_probs: Tensor | None,
    grad_entropy: Tensor | None,
    out: Tensor | None = None,
) -> Tensor:
    """d loss / d logits: in `out` (shaped as the logits), over the logits, or in a fresh tensor."""
    logits = call.logits
    if call.inplace_backward:
        out = logits
    elif out is None:
        out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if call.num_rows:
        grads = [
            None if grad is None else grad.to(torch.float32).contiguous()
            for grad in (grad_log_probs, grad_entropy)
        ]
        _C.token_log_probs_backward(
            *_params(call),
            *map(_address, (log_probs, stats, *grads, out)),
            *leading_rows(out),
            logits.shape[-1],
        )
    if call.inplace_backward:  # raw writes: tell autograd, so that other users of the logits hear
        torch.autograd.graph.increment_version(logits)
    return out


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _params(call: Call) -> tuple[int | float | tuple[int, ...], ...]:
    """The call in the order of `params` in bind.cpp."""
    return (
        _DTYPES[call.logits.dtype],
        call.logits.data_ptr(),
        *leading_rows(call.logits),
        call.num_rows,
        call.vocab_size,
        call.token_ids.data_ptr(),
        call.ids_per_row,
        _address(call.loss_mask),
        _address(call.temperatures),
        call.temperature,
        call.support_begin,
        call.support_end,
        _address(call.keep_indptr),
        _address(call.keep_indices),
        0 if call.keep_indices is None else len(call.keep_indices),
        call.softcap,
        call.logit_scale,
        torch.get_num_threads(),
    )
