"""Addresses of tensors to the kernel in `_C`."""

from __future__ import annotations

import torch
from torch import Tensor

from logpi import _C
from logpi.core.strides import leading_rows
from logpi.ops.action_sampling.op import ActionSample, Call, grid

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # core/dtype.h


def sample(call: Call) -> ActionSample:
    out = empty_outputs(call)
    if call.num_rows:
        _C.action_sampling(*params(call, out))
    return out


def empty_outputs(call: Call) -> ActionSample:
    lead = call.logits.shape[:-1]
    log_probs = call.logits.new_empty(lead, dtype=torch.float32)
    return ActionSample(
        torch.empty_like(log_probs, dtype=torch.int64),
        log_probs,
        torch.empty_like(log_probs) if call.entropy else None,
        torch.empty_like(log_probs),
    )


def params(call: Call, out: ActionSample) -> tuple[int | float | tuple[int, ...], ...]:
    """What a launcher takes of a call, CUDA's too: in the order of bind.h."""
    logits, table = call.logits, call.table
    return (
        _DTYPES[logits.dtype],
        logits.data_ptr(),
        *leading_rows(logits),
        call.num_rows,
        logits.shape[-1],
        grid(logits.shape[-1]),
        _address(call.temperatures),
        call.temperature,
        call.seed,
        call.step,
        _address(call.step_at),
        _address(call.row_ids),
        call.greedy,
        call.first_id,
        table.data_ptr(),
        len(table),
        torch.get_num_threads(),
        out.token_ids.data_ptr(),
        out.log_probs.data_ptr(),
        _address(out.entropy),
        out.actions.data_ptr(),
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
