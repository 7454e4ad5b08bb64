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
    new, lead, rows = call.logits.new_empty, call.logits.shape[:-1], call.num_rows
    ids = new(lead, dtype=torch.int64)
    log_probs = new(lead, dtype=torch.float32)
    entropy = torch.empty_like(log_probs) if call.entropy else None
    cuts = new((rows, 2), dtype=torch.float32) if call.keep else None
    indptr = new(rows + 1, dtype=torch.int64) if call.keep else None
    where = (
        _DTYPES[call.logits.dtype],
        call.logits.data_ptr(),
        *leading_rows(call.logits),
        rows,
        call.vocab_size,
    )
    threads = torch.get_num_threads()
    _C.sample_tokens(
        *where,
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
        call.step if call.step_at is None else int(call.step_at),
        call.greedy,
        call.truncated,
        threads,
        ids.data_ptr(),
        log_probs.data_ptr(),
        _address(entropy),
        _address(cuts),
        0 if indptr is None else indptr.data_ptr() + 8,
    )
    if indptr is None:
        return TokenSample(ids, log_probs, entropy)
    indptr[0] = 0
    indptr.cumsum_(0)
    indices = new(call.capacity if spare else int(indptr[-1]), dtype=torch.int32)
    _C.kept_ids(*where, _address(cuts), indptr.data_ptr(), indices.data_ptr(), threads)
    return TokenSample(ids, log_probs, entropy, KeepSet(indptr, indices))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
