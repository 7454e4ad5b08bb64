"""From the sums of a row to its outputs. The same few lines for every device and backend row.

A row's state is float64 `[7]`: top, rest, dot, square, linear, at, top_logit. `top` is its largest
value y (the logit after the softcap; without one the logit itself; before the temperature), first
met at column `at`. One element equal to it is left out of the sums: the whole sum is 1 + rest. With
t = log2(e) factor (y - top):

    rest = sum 2^t      dot = sum t 2^t      square = sum 2^2t      linear = sum y, top included
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from logpi.core import vocab_parallel
from logpi.ops.token_log_probs import TokenLogProbs
from logpi.ops.token_log_probs.op import Call

FIELDS = 7
TOP, REST, DOT, SQUARE, LINEAR, AT, TOP_LOGIT = range(FIELDS)
_LN2 = math.log(2.0)


def new_state(call: Call) -> tuple[Tensor, Tensor]:
    """`[N, 7]`: nothing met yet. `[N, K]`: y of the tokens; -inf until met, NaN if it is no id."""
    ids = call.token_ids.view(call.num_rows, call.ids_per_row)
    state = torch.zeros(call.num_rows, FIELDS, dtype=torch.float64, device=ids.device)
    state[:, TOP] = -torch.inf
    state[:, TOP_LOGIT] = -torch.inf
    state[:, AT] = -1
    targets = torch.full(ids.shape, -torch.inf, dtype=torch.float64, device=ids.device)
    return state, targets.masked_fill_((ids < 0) | (ids >= call.vocab_size), torch.nan)


def factor(call: Call) -> Tensor | float:
    """What multiplies y to give x: `[N, 1]` or a number; NaN where the temperature is none."""
    scale = 1.0 if call.softcap else call.logit_scale
    if call.temperatures is None:
        return scale / call.temperature
    t = call.temperatures.double()
    return (scale / t).masked_fill_(~((t > 0) & t.isfinite()), torch.nan)[:, None]


def merge(states: Tensor, call: Call) -> Tensor:
    """`[P, N, 7]`, the states of P parts of the vocabulary in any order, as one `[N, 7]`."""
    tops = states[..., TOP]
    top = tops.amax(0)  # NaN before all
    logit = states[..., TOP_LOGIT].masked_fill(tops != top, -torch.inf)
    place = states[..., AT].masked_fill((tops != top) | (logit != logit.amax(0)), torch.inf)
    winner = place.argmin(0, keepdim=True)  # a softcap may make equals; then the lowest id
    by = factor(call)
    scale = (by if isinstance(by, float) else by[:, 0]) / _LN2
    t = ((tops - top) * scale).clamp(min=-1000.0).nan_to_num(nan=-1000.0)  # (-inf) - (-inf)
    w = torch.exp2(t)
    own = torch.ones_like(tops).scatter_(0, winner, 0.0)
    rest, dot, square = (states[..., field] for field in (REST, DOT, SQUARE))
    out = torch.empty_like(states[0])
    out[:, TOP] = top
    out[:, REST] = ((rest + own) * w).sum(0)
    out[:, DOT] = ((dot + (rest + own) * t) * w).sum(0)
    out[:, SQUARE] = ((square + own) * w * w).sum(0)
    out[:, LINEAR] = states[..., LINEAR].sum(0)
    for field in (AT, TOP_LOGIT):
        out[:, field] = states[..., field].gather(0, winner)[0]
    return out


def merge_ranks(
    call: Call, state: Tensor, targets: Tensor, num_entries: int, group: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """State, targets and number of entries of the whole vocabulary, on every rank: what is asked
    for of a row travels as 4 to 8 + K float64, in one all-gather."""
    wanted = [TOP, REST, DOT]
    wanted += [SQUARE] if call.collision else []
    wanted += [LINEAR] if call.mean_logit else []
    wanted += [AT] if call.top1 else []
    wanted += [TOP_LOGIT]
    size = state.new_full((len(state), 1), num_entries)
    parts = vocab_parallel.gather(torch.cat((state[:, wanted], targets, size), -1), group)
    states = state.new_zeros(len(parts), *state.shape)
    states[..., wanted] = parts[..., : len(wanted)]
    return (
        merge(states, call),
        parts[..., len(wanted) : -1].amax(0),  # -inf where an id is another rank's
        parts[..., -1].sum(0),
    )


def finish(
    call: Call, state: Tensor, targets: Tensor, num_entries: Any, reference: int
) -> tuple[TokenLogProbs, Tensor]:
    """The outputs, `[N, K]` and `[N]` float32, and `[N, 3]` for the backward.

    `num_entries` is the size of the support; `reference` the field that the kernels of the
    backward take distances to: TOP or TOP_LOGIT.
    """
    by = factor(call)
    top = state[:, TOP]
    ids = call.token_ids.view(call.num_rows, call.ids_per_row)
    known = (targets == targets).all(-1) & (top == top)
    if not isinstance(by, float):
        known &= by[:, 0] == by[:, 0]
    good = known & top.isfinite()  # else there is no distribution
    rest = state[:, REST].masked_fill(~good, torch.nan)
    total, log_sum = 1 + rest, rest.log1p()
    mean_shifted = state[:, DOT] * _LN2 / total
    log_probs = ((targets - top[:, None]) * by - log_sum[:, None]).clamp(max=0)
    scale = by if isinstance(by, float) else by[:, 0]
    lse = mean = None
    if call.lse:
        lse = torch.where(known & (top == -torch.inf), top, top * scale + log_sum)
    if call.mean_logit:
        mean = (state[:, LINEAR] / num_entries * scale).masked_fill(~known, torch.nan)
    out = TokenLogProbs(
        log_probs.float(),
        (log_sum - mean_shifted).clamp(min=0).float() if call.entropy else None,
        ((1 + state[:, SQUARE]) / total.square()).float() if call.collision else None,
        None if lse is None else lse.float(),
        (ids == state[:, AT, None]) & good[:, None] if call.top1 else None,
        None if mean is None else mean.float(),
    )
    return out, torch.stack((state[:, reference], 1 / total, mean_shifted), -1).float()
