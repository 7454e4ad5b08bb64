"""The equations as they stand in op.py: the row `torch`, and what the kernels are judged by."""

from __future__ import annotations

import torch
from torch import Tensor

from logpi.core.draws import uniforms
from logpi.ops.action_sampling.op import ActionSample, Call, grid

LOG2E, LN2 = 1.44269504088896340736, 0.69314718055994530942
LOWEST = -1000.0  # in log2; 2^LOWEST is far below the grid
ROUND = 1.5 * 2.0**52
EXP2 = (  # csrc/action_sampling/exp2.h
    1.0,
    float.fromhex("0x1.62e42ff0e191bp-1"),
    float.fromhex("0x1.ebfbe0778729dp-3"),
    float.fromhex("0x1.c6b08ac06bb0fp-5"),
    float.fromhex("0x1.3b29f39d49fd3p-7"),
    float.fromhex("0x1.5d8a85fedf482p-10"),
    float.fromhex("0x1.445c8405ab1abp-13"),
    float.fromhex("0x1.fde5fdc78efb4p-17"),
)


def sample(call: Call) -> ActionSample:
    num_bins = call.num_bins
    z = call.sliced().reshape(call.num_rows, num_bins).double()
    temperature = _temperature(call)
    top, best = z.max(-1, keepdim=True)
    t = ((z - top) * (LOG2E / temperature)).clamp(min=LOWEST)
    weights = exp2(t)
    good = _good(call, top, weights)

    # Rounded to a grid on which sums are exact: no order of addition draws another token.
    upto = (weights + grid(num_bins) - grid(num_bins)).cumsum(-1)
    if call.greedy:
        bins = (z == top).byte().argmax(-1, keepdim=True)
    else:
        row_ids = call.row_ids
        if row_ids is None:
            row_ids = torch.arange(call.num_rows, device=z.device)
        u = uniforms(call.seed, call.step if call.step_at is None else call.step_at, row_ids)
        bins = (upto <= u[:, None] * upto[:, -1:]).sum(-1, keepdim=True)
    bins = bins.where(good, num_bins // 2)

    rest = weights.scatter(-1, best, 0.0).sum(-1, keepdim=True)  # without a largest, which is 1
    log_sum = rest.log1p()
    log_probs = LN2 * t.gather(-1, bins) - log_sum
    entropy = (log_sum - LN2 * (t * weights).sum(-1, keepdim=True) / (1 + rest)).clamp(min=0)
    dims = torch.arange(call.num_rows, device=z.device)[:, None] % len(call.table)
    actions = call.table[dims, bins]

    lead = call.logits.shape[:-1]
    wide = torch.float64 if call.logits.dtype == torch.float64 else torch.float32
    return ActionSample(
        (bins + call.first_id).view(lead),
        log_probs.where(good, torch.nan).to(wide).view(lead),
        entropy.where(good, torch.nan).to(wide).view(lead) if call.entropy else None,
        actions.where(good, torch.nan).view(lead),
    )


def exp2(t: Tensor) -> Tensor:
    """2^t of float64 in [LOWEST, 0], relative error 4.7e-11, by operations that round alike
    everywhere: csrc/action_sampling/exp2.h."""
    rounded = t + ROUND  # its low bits are round(t)
    f = t - (rounded - ROUND)
    p = torch.full_like(t, EXP2[-1])
    for coefficient in EXP2[-2::-1]:
        p = p * f + coefficient
    return (p.view(torch.int64) + (rounded.view(torch.int64) << 52)).view(torch.float64)


def _temperature(call: Call) -> Tensor | float:
    """`[N, 1]`, or the scalar. Bad values raise where looking is free, and make NaN elsewhere."""
    if call.temperatures is None:
        return call.temperature
    given = call.temperatures.double()[:, None]
    good = (given > 0) & (given < torch.inf)
    if _looks(call) and not good.all():
        row = int(good.logical_not().nonzero()[0, 0])
        raise ValueError(
            f"temperature: expected finite values above 0, got {given[row, 0]:g} in row {row}"
        )
    return given.where(good, torch.nan)


def _good(call: Call, top: Tensor, weights: Tensor) -> Tensor:
    """`[N, 1]`: rows that have a distribution."""
    good = weights.isfinite().all(-1, keepdim=True)
    if _looks(call) and not good.all():
        row = int(good.logical_not().nonzero()[0, 0])
        raise ValueError(
            "logits: expected rows with a finite maximum and no NaN, got a maximum of "
            f"{top[row, 0]:g} in row {row}"
        )
    return good


def _looks(call: Call) -> bool:
    return call.logits.is_cpu and not torch.compiler.is_compiling()
