"""Allocates and launches the Triton kernels."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from logpi.core.strides import leading_rows
from logpi.ops.token_log_probs import _triton_backward as backward_kernels
from logpi.ops.token_log_probs import _triton_kernels as kernels
from logpi.ops.token_log_probs.op import Call, TokenLogProbs


class Tiles(NamedTuple):
    """How a row is cut. Measured on no device yet: docs/ops/token_log_probs.md has the reasons."""

    block: int = 2048  # lanes: 16 bytes of bf16 for each of 256 threads
    segment: int = 40_960  # at most, summed by one program without a reduction
    few_rows: int = 264  # up to two programs per multiprocessor of the largest GPUs: split rows
    threads: int = 256


TILES = Tiles()
LANES = 64 if torch.version.hip else 32


def forward(call: Call, keep_stats: bool) -> tuple[TokenLogProbs, Tensor | None]:
    """The outputs, and `[.., 3]` floats for the backward if `keep_stats`."""
    new, ids, lead = call.logits.new_empty, call.token_ids.shape, call.logits.shape[:-1]
    log_probs = new(ids, dtype=torch.float32)
    entropy = new(lead, dtype=torch.float32) if call.entropy else None
    collision = new(lead, dtype=torch.float32) if call.collision else None
    lse = new(lead, dtype=torch.float32) if call.lse else None
    top1 = new(ids, dtype=torch.bool) if call.top1 else None
    mean_logit = new(lead, dtype=torch.float32) if call.mean_logit else None
    stats = new((*lead, 3), dtype=torch.float32) if keep_stats else None
    out = TokenLogProbs(log_probs, entropy, collision, lse, top1, mean_logit)
    if not call.num_rows:
        return out, stats

    begin, length = call.support_begin, call.support_end - call.support_begin
    keep = call.keep_indptr is not None
    segment, segments = (length, 1) if keep else _segments(length)
    split = segments > 1 and call.num_rows <= TILES.few_rows
    rows, row_options = strided_rows(call.logits, begin)
    row_arguments = (*rows, begin, length, call.vocab_size, *row_scalars(call))
    fields = (*out, stats)
    partial = new((call.num_rows, segments, 6), dtype=torch.float64) if split else None
    constants = {"IDS": ids_at_a_time(call), "CAP": call.softcap != 0}
    options = {**constants, "num_warps": TILES.threads // LANES}
    with on_device(call.logits):
        kernels.forward_kernel[(call.num_rows * (segments if split else 1),)](
            *row_arguments,
            *_keep(call),
            *fields,
            partial,
            segment,
            segments,
            BLOCK=TILES.block,
            WHOLE=not keep and length % 8 == 0,
            **row_options,
            **options,
        )
        if split:
            kernels.combine_kernel[(call.num_rows,)](
                *row_arguments,
                *fields,
                partial,
                segments,
                DIMS=row_options["DIMS"],
                **constants,
                num_warps=1,
            )
    return out, stats


def backward(
    call: Call,
    log_probs: Tensor,
    stats: Tensor,
    grad_log_probs: Tensor | None,
    grad_entropy: Tensor | None,
    out: Tensor | None = None,
) -> Tensor:
    """d loss / d logits: in `out` (shaped as the logits), over the logits, or in a fresh tensor."""
    logits = call.logits
    if call.inplace_backward:
        out = logits
    elif out is None:
        out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if call.num_rows:
        grads = [
            None if grad is None else grad.to(torch.float32).contiguous()
            for grad in (grad_log_probs, grad_entropy)
        ]
        with on_device(logits):
            launch = _backward if call.keep_indptr is None else _kept_backward
            launch(call, (log_probs, stats, *grads), out.detach())
    if call.inplace_backward:  # raw writes: tell autograd, so that other users of the logits hear
        torch.autograd.graph.increment_version(logits)
    return out


def _backward(call: Call, saved: tuple[Tensor | None, ...], out: Tensor) -> None:
    columns, first = call.logits.shape[-1], call.first_column
    begin, end = call.support_begin - first, call.support_end - first
    chunks = -(-columns // (4 * TILES.block))
    rows, row_options = strided_rows(call.logits, 0)
    grad_rows, grad_options = strided_rows(out, 0)
    backward_kernels.backward_kernel[(call.num_rows * chunks,)](
        *rows,
        *grad_rows,
        columns,
        begin,
        end,
        first,
        *row_scalars(call),
        *saved,
        chunks,
        BLOCK=TILES.block,
        IDS=ids_at_a_time(call),
        WHOLE=(begin | end | columns) % 8 == 0,
        CAP=call.softcap != 0,
        **row_options,
        **{f"GRAD_{name}": value for name, value in grad_options.items()},
        num_warps=TILES.threads // LANES,
    )


def _kept_backward(call: Call, saved: tuple[Tensor | None, ...], out: Tensor) -> None:
    assert call.keep_indices is not None
    values = call.logits.new_empty(len(call.keep_indices), dtype=torch.float32)
    constants = {"BLOCK": TILES.block, "IDS": ids_at_a_time(call)}
    rows, row_options = strided_rows(call.logits, 0)
    backward_kernels.kept_backward_kernel[(call.num_rows,)](
        *rows,
        call.vocab_size,
        *row_scalars(call),
        *_keep(call),
        *saved,
        values,
        DIMS=row_options["DIMS"],
        CAP=call.softcap != 0,
        **constants,
        num_warps=TILES.threads // LANES,
    )
    out.zero_()
    rows, row_options = strided_rows(out, 0)
    backward_kernels.scatter_kernel[(call.num_rows,)](
        *rows,
        call.vocab_size,
        call.ids_per_row,
        call.loss_mask,
        *_keep(call),
        *saved[2:],
        values,
        DIMS=row_options["DIMS"],
        **constants,
        num_warps=TILES.threads // LANES,
    )


def _segments(length: int) -> tuple[int, int]:
    """Size and number of a row's segments, by its length alone; each a multiple of four blocks."""
    group = 4 * TILES.block
    count = -(-length // TILES.segment)
    size = -(-length // (count * group)) * group
    return size, -(-length // size)


def strided_rows(x: Tensor, column: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Where the rows of a strided tensor are, and whether all begin at a 16-byte address."""
    sizes, strides = leading_rows(x)
    dims, width = len(sizes), x.element_size()
    steps = [stride for size, stride in zip(sizes, strides, strict=True) if size > 1]
    aligned = all(at * width % 16 == 0 for at in steps)
    aligned = aligned and (x.data_ptr() + column * width) % 16 == 0
    sizes, strides = (*sizes[1:], 1, 1, 1)[:3], (*strides, 0, 0, 0)[:4]
    return (x, *sizes, *strides), {"DIMS": dims, "ALIGNED": aligned}


def row_scalars(call: Call) -> tuple[Any, ...]:
    """Ids, masks and what turns a logit into x; the scale waits until after the maximum."""
    cap = call.softcap
    factor = (1.0 if cap else call.logit_scale) / call.temperature
    inner = call.logit_scale / cap if cap else 0.0
    return (
        call.token_ids,
        call.ids_per_row,
        call.loss_mask,
        call.temperatures,
        factor,
        cap,
        inner,
    )


def _keep(call: Call) -> tuple[Tensor | None, Tensor | None, int]:
    keep = call.keep_indices
    return call.keep_indptr, keep, 0 if keep is None else len(keep)


def ids_at_a_time(call: Call) -> int:
    """A power of two. One where each id must be looked for among the kept ones."""
    if call.keep_indptr is not None:
        return 1
    return min(128, 1 << max(call.ids_per_row - 1, 0).bit_length())


def on_device(x: Tensor) -> Any:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()
