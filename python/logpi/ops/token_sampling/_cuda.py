"""Addresses of tensors to the CUDA kernels, with the device and the stream to run on."""

from __future__ import annotations

import torch

from logpi.core import cuda
from logpi.core.support import KeepSet
from logpi.ops.token_sampling._native import Outputs, params, rows
from logpi.ops.token_sampling.op import Call, TokenSample


def forward(call: Call, spare: bool = True) -> TokenSample:
    """`spare`: the indices of `keep` may be longer than they must. Here they always are."""
    out, device = Outputs(call), call.logits.device
    place = cuda.index(device), cuda.stream(device)
    step_at = 0 if call.step_at is None else call.step_at.data_ptr()
    if call.num_rows:
        cuda.launchers().sample_tokens_cuda(*params(call, out), step_at, *place)
    if out.indptr is None:
        return out.sample
    out.indptr.cumsum_(0)
    indices = call.logits.new_empty(call.capacity, dtype=torch.int32)
    if call.num_rows:
        cuda.launchers().kept_ids_cuda(
            *rows(call, out), out.indptr.data_ptr(), indices.data_ptr(), *place
        )
    return out.sample._replace(keep=KeepSet(out.indptr, indices))
