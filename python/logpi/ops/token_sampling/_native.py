"""Addresses of tensors to the kernels in `_C`."""

from __future__ import annotations

import torch
from torch import Tensor

from logpi import _C
from logpi.core.strides import leading_rows
from logpi.core.support import KeepSet
from logpi.ops.token_sampling.op import Call, TokenSample

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # core/dtype.h


def forward(call: Call, spare: bool = False) -> TokenSample:
    """`spare`: indices of the static size that torch.compile wants to know."""
    out = Outputs(call)
    if call.step_at is not None:
        call = call._replace(step=int(call.step_at))
    _C.sample_tokens(*params(call, out))
    if out.indptr is None:
        return out.sample
    out.indptr.cumsum_(0)
    size = call.capacity if spare else int(out.indptr[-1])
    indices = call.logits.new_empty(size, dtype=torch.int32)
    _C.kept_ids(*rows(call, out), out.indptr.data_ptr(), indices.data_ptr())
    return out.sample._replace(keep=KeepSet(out.indptr, indices))


class Outputs:
    """Buffers for the results; `indptr[1:]` takes how many ids a row keeps."""

    def __init__(self, call: Call) -> None:
        new, lead = call.logits.new_empty, call.logits.shape[:-1]
        self.sample = TokenSample(
            new(lead, dtype=torch.int64),
            new(lead, dtype=torch.float32),
            new(lead, dtype=torch.float32) if call.entropy else None,
        )
        self.cuts = self.indptr = None
        if call.keep:
            self.cuts = new((call.num_rows, 2), dtype=torch.float32)
            self.indptr = call.logits.new_zeros(call.num_rows + 1, dtype=torch.int64)


def rows(call: Call, out: Outputs) -> tuple[int | tuple[int, ...], ...]:
    """What both launchers begin with, CUDA's too: in the order of bind.h."""
    return (
        _DTYPES[call.logits.dtype],
        call.logits.data_ptr(),
        *leading_rows(call.logits),
        call.num_rows,
        call.vocab_size,
        _address(out.cuts),
        torch.get_num_threads(),
    )


def params(call: Call, out: Outputs) -> tuple[int | float | tuple[int, ...], ...]:
    sample = out.sample
    return (
        *rows(call, out),
        _address(call.row_ids),
        _address(call.temperatures),
        _address(call.top_ks),
        _address(call.top_ps),
        _address(call.min_ps),
        call.temperature,
        call.top_k,
        call.top_p,
        call.min_p,
        call.seed,
        call.step,
        call.greedy,
        call.truncated,
        sample.token_ids.data_ptr(),
        sample.log_probs.data_ptr(),
        _address(sample.entropy),
        0 if out.indptr is None else out.indptr.data_ptr() + 8,
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
