"""Addresses of tensors to the CUDA fold; the backward of a tile is token_log_probs' own."""

from __future__ import annotations

from torch import Tensor

from logpi.core import cuda
from logpi.ops.linear_log_probs import _finish
from logpi.ops.linear_log_probs._native import fold_arguments
from logpi.ops.token_log_probs._cuda import backward, forward, place
from logpi.ops.token_log_probs._native import params
from logpi.ops.token_log_probs.op import Call

__all__ = ["REFERENCE", "backward", "fold", "forward"]

REFERENCE = _finish.TOP_LOGIT


def fold(call: Call, state: Tensor, targets: Tensor) -> None:
    """The tile `call.logits` into `state [n, 7]` and `targets [n, K]`."""
    if call.num_rows:
        cuda.launchers().linear_log_probs_cuda_fold(
            *params(call), *fold_arguments(call, state, targets), *place(call)
        )
