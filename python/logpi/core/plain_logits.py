"""Why a kernel cannot take a call's logits as they lie: the part of `why_not` that ops share."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from logpi.core import cuda, triton_row


class Call(Protocol):
    @property
    def logits(self) -> Tensor: ...  # [.., V], any strides


def refused_by_cpu(call: Call) -> str | None:
    if not call.logits.is_cpu:
        return f"needs logits on a CPU, got {call.logits.device}"
    return _refused_by_all(call.logits)


def refused_by_cuda(call: Call) -> str | None:
    if call.logits.device.type != cuda.device_type():
        return f"needs logits on an NVIDIA GPU, got {call.logits.device}"
    return _refused_by_all(call.logits)


def refused_by_triton(call: Call) -> str | None:
    return triton_row.misplaced("logits", call.logits) or _refused_by_all(call.logits)


def _refused_by_all(logits: Tensor) -> str | None:
    if logits.dtype == torch.float64:
        return "serves float32, bfloat16 and float16 logits, got float64"
    if logits.stride(-1) != 1 and logits.shape[-1] > 1:
        return f"needs logits with unit stride in the last dim, got strides {logits.stride()}"
    if logits.dim() > 5:
        return f"serves logits of up to 4 leading dims, got {logits.dim() - 1}"
    return None
