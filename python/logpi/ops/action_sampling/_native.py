"""Addresses of tensors to the kernel in `_C`."""

from __future__ import annotations

import torch
from torch import Tensor

from logpi import _C
from logpi.core.strides import leading_rows
from logpi.ops.action_sampling.op import ActionSample, Call, grid

# As core/dtype.h has it; bytes an element.
_DTYPES = {torch.float32: (0, 4), torch.bfloat16: (1, 2), torch.float16: (2, 2)}


def sample(call: Call) -> ActionSample:
    out = empty_outputs(call)
    if call.num_rows:
        _C.action_sampling(*params(call, out))
    return out


def empty_outputs(call: Call) -> ActionSample:
    new, lead = call.logits.new_empty, call.logits.shape[:-1]
    return ActionSample(
        new(lead, dtype=torch.int64),
        new(lead, dtype=torch.float32),
        new(lead, dtype=torch.float32) if call.entropy else None,
        new(lead, dtype=torch.float32),
    )


def params(call: Call, out: ActionSample) -> tuple[int | float | tuple[int, ...], ...]:
    """What a launcher takes of a call, CUDA's too: in the order of bind.h."""
    logits, table = call.logits, call.table
    dtype, width = _DTYPES[logits.dtype]
    return (
        dtype,
        logits.data_ptr() + call.first_column * width,
        *leading_rows(logits),
        call.num_rows,
        call.num_bins,
        grid(call.num_bins),
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
