"""Launches the Triton fold kernel; the backward of a tile is token_log_probs' own."""

from __future__ import annotations

from torch import Tensor

from logpi.ops.linear_log_probs import _finish
from logpi.ops.linear_log_probs import _triton_kernels as kernels
from logpi.ops.token_log_probs import _triton as tokens
from logpi.ops.token_log_probs._triton import backward, forward
from logpi.ops.token_log_probs.op import Call

__all__ = ["REFERENCE", "backward", "fold", "forward"]

REFERENCE = _finish.TOP
SMALLER = 4  # than token_log_probs' blocks and programs: a tile is short, its reductions are not


def fold(call: Call, state: Tensor, targets: Tensor) -> None:
    """The tile `call.logits` into `state [n, 7]` and `targets [n, K]`."""
    tile, length = call.logits, call.support_end - call.support_begin
    if not call.num_rows:
        return
    stride = tile.stride(0)
    with tokens.on_device(tile):
        kernels.fold_kernel[(call.num_rows,)](
            tile,
            stride,
            call.first_column,
            length,
            *tokens.row_scalars(call),
            state,
            targets,
            BLOCK=tokens.TILES.block // SMALLER,
            IDS=tokens.ids_at_a_time(call),
            ALIGNED=(tile.data_ptr() | stride * tile.element_size()) % 16 == 0,
            WHOLE=length % 8 == 0,
            CAP=call.softcap != 0,
            COLLISION=call.collision,
            MEAN_LOGIT=call.mean_logit,
            TOP1=call.top1,
            num_warps=tokens.TILES.threads // SMALLER // tokens.LANES,
        )
