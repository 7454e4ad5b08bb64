"""Addresses of tensors to the CUDA kernels, with the device and the stream to run on."""

from __future__ import annotations

from torch import Tensor

from logpi.core import cuda
from logpi.ops.covariance_clip import _phases
from logpi.ops.covariance_clip._native import params
from logpi.ops.covariance_clip._phases import Work
from logpi.ops.covariance_clip.op import Call


def evaluate(call: Call) -> Tensor:
    return _phases.evaluate(_run, call)


def _run(call: Call, work: Work, start: int, end: int) -> None:
    device = call.log_probs.device
    cuda.launchers().covariance_clip_cuda(
        *params(call, work), start, end, cuda.index(device), cuda.stream(device)
    )
