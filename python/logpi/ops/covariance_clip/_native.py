"""Addresses of tensors to the kernels in `_C`."""

from __future__ import annotations

import torch
from torch import Tensor

from logpi import _C
from logpi.ops.covariance_clip import _phases
from logpi.ops.covariance_clip._phases import Work
from logpi.ops.covariance_clip.op import Call


def evaluate(call: Call) -> Tensor:
    return _phases.evaluate(_run, call, keys_per_token=2)


def _run(call: Call, work: Work, start: int, end: int) -> None:
    _C.covariance_clip(*params(call, work), start, end)


def params(call: Call, work: Work) -> tuple[int | float, ...]:
    """What a launcher takes of a call, CUDA's too."""
    size, head = call.log_probs.numel(), work.memory.data_ptr()
    counts = head + 8 * work.head_words
    keys = counts + 8 * work.tiles
    return (
        call.log_probs.data_ptr(),
        call.advantages.data_ptr(),
        call.loss_mask.data_ptr(),
        0 if call.exclude is None else call.exclude.data_ptr(),
        size,
        call.rule,
        call.fraction,
        call.lower,
        call.upper,
        call.seed,
        call.step,
        0 if call.step_at is None else call.step_at.data_ptr(),
        head,
        counts,
        keys,
        keys + 4 * size,
        work.out.data_ptr(),
        torch.get_num_threads(),
    )
