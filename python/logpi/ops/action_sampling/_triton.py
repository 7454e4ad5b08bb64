"""Allocates and launches the Triton kernel."""

from __future__ import annotations

from typing import Any

from logpi.ops.action_sampling import _triton_kernels as kernels
from logpi.ops.action_sampling._native import empty_outputs
from logpi.ops.action_sampling.op import ActionSample, Call, grid
from logpi.ops.token_log_probs._triton import on_device, strided_rows

BINS_PER_WARP = 256  # eight doubles a thread; one warp for OpenVLA's slice


def sample(call: Call) -> ActionSample:
    out = empty_outputs(call)
    if call.num_rows:
        with on_device(call.logits):
            kernels.sample_kernel[(call.num_rows,)](*arguments(call, out), **options(call))
    return out


def arguments(call: Call, out: ActionSample) -> tuple[Any, ...]:
    return (
        *strided_rows(call.sliced(), 0)[0],
        call.num_bins,
        grid(call.num_bins),
        call.temperatures,
        call.temperature,
        call.seed,
        call.step,
        call.step_at,
        call.row_ids,
        call.first_id,
        call.table,
        len(call.table),
        *out,
    )


def options(call: Call) -> dict[str, Any]:
    block = 1 << (call.num_bins - 1).bit_length()
    return {
        **strided_rows(call.sliced(), 0)[1],
        "BLOCK": block,
        "FULL": call.num_bins == block,
        "GREEDY": call.greedy,
        "num_warps": min(max(block // BINS_PER_WARP, 1), 16),
        "enable_fp_fusion": False,  # or a GPU draws what a CPU does not
    }
