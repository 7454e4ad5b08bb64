"""Allocates and launches the Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from logpi.ops.flow_balance import _triton_kernels as kernels
from logpi.ops.flow_balance._native import (
    Gradients,
    Outputs,
    empty_gradients,
    empty_outputs,
    in_rows,
    plain,
)
from logpi.ops.flow_balance.op import Call
from logpi.ops.token_log_probs._triton import LANES, on_device

BLOCK = 1024  # tokens a program: four loads of each input a thread in flight
ROWS = 128  # sequences at a time, of the program that has all of them
THREADS = 256


def forward(call: Call) -> Outputs:
    """The loss, the metrics `[10]`, and `[B, 2]` float64 for the backward.

    Two launches: whoever finishes last could do the second's work, but the ticket that tells who
    that is would have to be zeroed, by a launch before.
    """
    call, out = plain(call), empty_outputs(call)
    loss, metrics, slopes = out
    rows, columns = call.log_probs.shape
    pieces = -(-columns // BLOCK)
    sums = call.log_z.new_empty((rows * pieces, 4), dtype=torch.float64)
    tokens = call.log_probs, call.ref_log_probs, call.old_log_probs, call.loss_mask
    where = (at for x in tokens for at in (x, x.stride(0)))
    with on_device(call.log_z):
        if len(sums):
            kernels.pieces_kernel[(len(sums),)](
                *where, columns, pieces, sums, BLOCK=BLOCK, num_warps=THREADS // LANES
            )
        kernels.finish_kernel[(1,)](
            sums,
            pieces,
            rows,
            call.rewards,
            call.log_z,
            call.divisor,
            call.num_sequences or float(max(rows, 1)),
            call.reward_scale,
            call.low,
            call.high,
            *call.log_bounds(),
            loss,
            metrics,
            slopes,
            ROWS=ROWS,
            num_warps=ROWS // LANES,
        )
    return out


def backward(
    loss_mask: Tensor, slopes: Tensor, grad_loss: Tensor, needs: tuple[bool, bool]
) -> Gradients:
    """d loss / d log_probs and d loss / d log_z, those that are needed."""
    mask, out = in_rows(loss_mask), empty_gradients(loss_mask, grad_loss, needs)
    rows, columns = mask.shape
    pieces = max(-(-columns // BLOCK), 1) if needs[0] else 1
    if rows:
        with on_device(mask):
            kernels.gradient_kernel[(rows * pieces,)](
                mask,
                mask.stride(0),
                columns,
                pieces,
                slopes,
                grad_loss,
                *out,
                BLOCK=BLOCK,
                num_warps=THREADS // LANES,
            )
    return out
