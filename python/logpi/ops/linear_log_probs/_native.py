"""Addresses of tensors to the fold kernel in `_C`; a tile's backward is token_log_probs' own."""

from __future__ import annotations

from torch import Tensor

from logpi import _C
from logpi.ops.linear_log_probs import _finish
from logpi.ops.token_log_probs._native import backward, forward, params
from logpi.ops.token_log_probs.op import Call

__all__ = ["REFERENCE", "backward", "fold", "forward"]

REFERENCE = _finish.TOP


def fold(call: Call, state: Tensor, targets: Tensor) -> None:
    """The tile `call.logits` into `state [n, 7]` and `targets [n, K]`."""
    if call.num_rows:
        _C.linear_log_probs_fold(*params(call), *fold_arguments(call, state, targets))


def fold_arguments(call: Call, state: Tensor, targets: Tensor) -> tuple[int | bool, ...]:
    everything = call.collision or call.mean_logit
    return state.data_ptr(), targets.data_ptr(), everything, call.top1
