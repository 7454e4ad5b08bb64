"""Launches the Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from logpi.ops.covariance_clip import _phases
from logpi.ops.covariance_clip import _triton_kernels as kernels
from logpi.ops.covariance_clip._phases import HISTOGRAMS, KEYS, MARK, SECOND, SUMS, TILE, Work
from logpi.ops.covariance_clip._phases import TIES_PHASE as TIES
from logpi.ops.covariance_clip.op import COVARIANCES, Call
from logpi.ops.token_log_probs._triton import on_device

DIGITS = 2048
SOME = 64  # tokens whose limbs are told apart at a time


def evaluate(call: Call) -> Tensor:
    return _phases.evaluate(_run, call)


def _run(call: Call, work: Work, start: int, end: int) -> None:
    with on_device(call.log_probs):
        for phase in range(start, end):
            _launch(call, work, phase)


def _launch(call: Call, work: Work, phase: int) -> None:
    size, grid, tiles = call.log_probs.numel(), (work.tiles,), work.tiles
    head, scratch = work.head, work.scratch
    counts, ties, keys = (scratch[at:] for at in (0, tiles, 2 * tiles))
    inputs = (call.log_probs, call.advantages, call.loss_mask)
    selects = call.rule != COVARIANCES
    histograms = head[HISTOGRAMS:].view(torch.int32).view(-1, DIGITS)
    if phase == SUMS:
        head.zero_()
        kernels.sums_kernel[grid](*inputs, size, head, counts, TILE=TILE, SOME=SOME)
    elif phase == KEYS:
        kernels.keys_kernel[grid](
            *inputs,
            call.exclude,
            size,
            call.lower,
            call.upper,
            call.seed,
            call.step,
            call.step_at,
            head,
            counts,
            keys,
            histograms[0] if selects else None,
            work.out,
            TILE=TILE,
            RULE=call.rule,
        )
    elif phase == TIES:
        kernels.ties_kernel[grid](size, head, keys, histograms[2], ties, TILE=TILE)
    elif phase == MARK:
        kernels.mark_kernel[grid](size, head, keys, ties, work.out, TILE=TILE)
    else:
        at = phase - SECOND
        now, following = histograms[at], histograms[at + 1]
        kernels.digit_kernel[grid](
            size, call.fraction, head, keys, now, following, TILE=TILE, AT=at
        )
