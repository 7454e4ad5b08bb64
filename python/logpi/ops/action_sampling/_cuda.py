"""Addresses of tensors to the CUDA kernel, with the device and the stream to run on."""

from __future__ import annotations

from logpi.core import cuda
from logpi.ops.action_sampling._native import empty_outputs, params
from logpi.ops.action_sampling.op import ActionSample, Call


def sample(call: Call) -> ActionSample:
    out, device = empty_outputs(call), call.logits.device
    if call.num_rows:
        cuda.launchers().action_sampling_cuda(
            *params(call, out), cuda.index(device), cuda.stream(device)
        )
    return out
