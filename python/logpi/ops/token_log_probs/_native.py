"""Addresses of tensors to the kernels in `_C`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logpi import _C
from logpi.core.strides import leading_rows
from logpi.ops.token_log_probs.op import Call, TokenLogProbs

_FLOAT = torch.float32
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # core/dtype.h


def forward(call: Call, keep_stats: bool) -> tuple[TokenLogProbs, Tensor | None]:
    """The outputs, and `[.., 3]` floats for the backward if `keep_stats`."""
    out, stats = empty_outputs(call, keep_stats)
    if call.num_rows:
        _C.token_log_probs_forward(*params(call), *map(address, out), address(stats))
    return out, stats


def empty_outputs(call: Call, keep_stats: bool) -> tuple[TokenLogProbs, Tensor | None]:
    """Unwritten tensors for what the call asks for, and `[.., 3]` floats if `keep_stats`."""
    # empty_like takes 0.6 us where new_empty takes 1.5; as much as the kernel of a small call.
    new, lead = call.logits.new_empty, call.logits.shape[:-1]
    log_probs = torch.empty_like(call.token_ids, dtype=_FLOAT)
    row = log_probs if log_probs.dim() == len(lead) else new(lead, dtype=_FLOAT)
    out = TokenLogProbs(
        log_probs,
        torch.empty_like(row) if call.entropy else None,
        torch.empty_like(row) if call.collision else None,
        torch.empty_like(row) if call.lse else None,
        torch.empty_like(call.token_ids, dtype=torch.bool) if call.top1 else None,
        torch.empty_like(row) if call.mean_logit else None,
    )
    return out, new((*lead, 3), dtype=_FLOAT) if keep_stats else None


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
        upstream = floats(grad_log_probs), floats(grad_entropy)
        _C.token_log_probs_backward(
            *params(call), *map(address, (log_probs, stats, *upstream, out)), *rows(out)
        )
    return written(call, out)


def gradient_buffer(call: Call, out: Tensor | None) -> Tensor:
    if call.inplace_backward:
        return call.logits
    if out is None:
        return torch.empty_like(call.logits, memory_format=torch.contiguous_format)
    return out


def written(call: Call, out: Tensor) -> Tensor:
    """`out`, after raw writes: autograd is told, so that other users of the logits hear."""
    if call.inplace_backward:
        torch.autograd.graph.increment_version(call.logits)
    return out


def floats(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.to(_FLOAT).contiguous()


def rows(x: Tensor) -> tuple[Any, ...]:
    """Where the rows of `x` lie: sizes, strides and the length of a row."""
    return (*leading_rows(x), x.shape[-1])


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def params(call: Call) -> tuple[int | float | tuple[int, ...], ...]:
    """The call in the order of `params` in bind.cpp."""
    return (
        _DTYPES[call.logits.dtype],
        call.logits.data_ptr(),
        *leading_rows(call.logits),
        call.num_rows,
        call.vocab_size,
        call.token_ids.data_ptr(),
        call.ids_per_row,
        address(call.loss_mask),
        address(call.temperatures),
        call.temperature,
        call.support_begin,
        call.support_end,
        address(call.keep_indptr),
        address(call.keep_indices),
        0 if call.keep_indices is None else len(call.keep_indices),
        call.softcap,
        call.logit_scale,
        torch.get_num_threads(),
        call.first_column,
    )
