"""Allocates and launches the Triton kernels."""

from __future__ import annotations

import math
import struct
from typing import Any

import torch
from torch import Tensor

from logpi.core.support import KeepSet
from logpi.ops.token_log_probs._triton import LANES, on_device, strided_rows
from logpi.ops.token_sampling import _triton_kernels as kernels
from logpi.ops.token_sampling.op import Call, TokenSample

BLOCK = 4096  # values a program looks at together: 16 bytes of bf16 for each thread
THREADS = 512  # Both measured on no device yet


def forward(call: Call, spare: bool = True) -> TokenSample:
    """`spare`: the indices of `keep` may be longer than they must. Here they always are."""
    new, lead, rows = call.logits.new_empty, call.logits.shape[:-1], call.num_rows
    ids = new(lead, dtype=torch.int64)
    log_probs = new(lead, dtype=torch.float32)
    entropy = torch.empty_like(log_probs) if call.entropy else None
    indptr = new(rows + 1, dtype=torch.int64) if call.keep else None
    cuts = new((rows, 2), dtype=torch.float32) if call.keep else None
    where, where_options = strided_rows(call.logits, 0)
    options = {**where_options, "BLOCK": BLOCK, "num_warps": THREADS // LANES}
    if rows:
        with on_device(call.logits):
            kernels.sample_kernel[(rows,)](
                *where,
                call.vocab_size,
                *_numbers(call),
                ids,
                log_probs,
                entropy,
                cuts,
                indptr,
                TOP_K=call.top_ks is not None or call.top_k < call.vocab_size,
                TOP_P=call.top_ps is not None or call.top_p < 1,
                MIN_P=call.min_ps is not None or call.min_p > 0,
                GREEDY=call.greedy,
                **options,
            )
    elif indptr is not None:
        indptr.zero_()
    if indptr is None:
        return TokenSample(ids, log_probs, entropy)
    indptr.cumsum_(0)
    indices = new(call.capacity, dtype=torch.int32)
    if rows:
        with on_device(call.logits):
            kernels.kept_kernel[(rows,)](*where, call.vocab_size, cuts, indptr, indices, **options)
    return TokenSample(ids, log_probs, entropy, KeepSet(indptr, indices))


def _numbers(call: Call) -> tuple[Any, ...]:
    """The per-row tensors, the scalars and the draw's, as the kernel takes them."""
    tensors: tuple[Tensor | None, ...] = call[1:6]
    row_ids, temperatures, top_ks, top_ps, min_ps = tensors
    least = math.log(call.min_p) if call.min_p > 0 else 0.0
    return (
        row_ids,
        temperatures,
        top_ks,
        top_ps,
        min_ps,
        *_halves(call.temperature),
        call.top_k,
        *_halves(call.top_p),
        *_halves(least),
        call.seed,
        call.step,
        call.step_at,
    )


def _halves(x: float) -> tuple[float, float]:
    """Two float32 whose sum has 48 bits of x: a launch knows no scalar of float64."""
    high = struct.unpack("f", struct.pack("f", x))[0]
    return high, x - high
