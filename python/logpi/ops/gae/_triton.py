"""Allocates and launches the Triton kernels."""

from __future__ import annotations

import struct

import torch

from logpi.ops.gae import _triton_kernels as kernels
from logpi.ops.gae.op import Call, Gae
from logpi.ops.token_log_probs._triton import LANES, on_device

BLOCK = 1024  # tokens a program scans at a time. Measured on no device yet
THREADS = 512  # two tokens each, as pairs of float64: with four, half as many warps would fit


def forward(call: Call) -> Gae:
    rewards, values, mask, gamma, lam, whiten = call
    num_rows, num_tokens = mask.shape
    out = Gae(torch.empty_like(rewards), torch.empty_like(rewards))
    if not mask.numel():
        return out
    # Not rounded before they are whitened: their mean may be many times their spread.
    raw = rewards.new_empty(mask.shape, dtype=torch.float64) if whiten else out.advantages
    moments = rewards.new_empty((num_rows, 3), dtype=torch.float64) if whiten else None
    options = {"BLOCK": BLOCK, "num_warps": THREADS // LANES}
    with on_device(rewards):
        kernels.scan_kernel[(num_rows,)](
            rewards,
            values,
            mask,
            raw,
            out.returns,
            moments,
            num_tokens,
            *_halves(gamma * lam),
            *_halves(gamma * (1 - lam)),
            **options,
        )
        if whiten:
            kernels.whiten_kernel[(num_rows, -(-num_tokens // BLOCK))](
                raw, mask, moments, out.advantages, num_rows, num_tokens, **options
            )
    return out


def _halves(x: float) -> tuple[float, float]:
    """Two float32 whose sum has 48 bits of x: a launch knows no scalar of float64."""
    high = struct.unpack("f", struct.pack("f", x))[0]
    return high, x - high
