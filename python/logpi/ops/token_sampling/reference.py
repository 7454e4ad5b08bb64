"""The definition of sample_tokens in plain torch: by a full sort, in float64, rounded once."""

from __future__ import annotations

import torch
from torch import Tensor

from logpi.core.draws import uniforms
from logpi.core.support import KeepSet
from logpi.ops.token_sampling.op import Call, TokenSample

EXPECTED = {
    "logits": "a finite largest value and no NaN",
    "temperature": "finite values above 0",
    "top_k": "values of at least 1",
    "top_p": "values above 0, at most 1",
    "min_p": "values in [0, 1]",
}


def forward(call: Call) -> TokenSample:
    z = call.logits.reshape(call.num_rows, call.logits.shape[-1])[:, : call.vocab_size].double()
    top = z.amax(-1, keepdim=True)
    temperature = _column(call.temperatures, call.temperature, z)
    k = _column(call.top_ks, call.top_k, z)
    p = _column(call.top_ps, call.top_p, z)
    least = _column(call.min_ps, call.min_p, z)
    bad = _check(call, "logits", top, ~top.isfinite())
    bad = bad | _check(
        call, "temperature", temperature, ~((temperature > 0) & temperature.isfinite())
    )
    bad = bad | _check(call, "top_k", k, k < 1)
    bad = bad | _check(call, "top_p", p, ~((p > 0) & (p <= 1)))
    bad = bad | _check(call, "min_p", least, ~((least >= 0) & (least <= 1)))
    z, top = z.masked_fill(bad, 0.0), top.masked_fill(bad, 0.0)
    temperature = temperature.masked_fill(bad, 1.0)

    x = (z - top) / temperature
    w = x.exp()
    keep = z > -torch.inf
    if call.truncated:
        order = z.sort(dim=-1, descending=True, stable=True).indices
        first = torch.arange(call.vocab_size, device=z.device) < k
        falling = w.gather(-1, order).where(first, 0.0)
        before = falling.cumsum(-1) - falling
        first = first & ((before < p * falling.sum(-1, keepdim=True)) | (p >= 1))
        keep = keep & torch.zeros_like(keep).scatter(-1, order, first)
        keep = keep & (z >= top + temperature * least.log())
    keep = keep.where(~bad, torch.arange(call.vocab_size, device=z.device) == 0)

    w, x = w.where(keep, 0.0), x.where(keep, 0.0)
    upto = w.cumsum(-1)
    total = upto[:, -1:]
    if call.greedy:
        reached = z == top
    else:
        row_ids = call.row_ids
        if row_ids is None:
            row_ids = torch.arange(call.num_rows, device=z.device)
        step = call.step if call.step_at is None else call.step_at
        target = uniforms(call.seed, step, row_ids)[:, None] * total
        reached = (upto > target) | (upto >= total)  # u * total may round to the total
    ids = reached.int().argmax(-1, keepdim=True)  # the first
    log_probs = (x.gather(-1, ids) - total.log()).masked_fill(bad, torch.nan)
    entropy = total.log() - (w * x).sum(-1, keepdim=True) / total
    return TokenSample(
        ids.reshape(call.logits.shape[:-1]),
        _shaped(log_probs, call),
        _shaped(entropy.masked_fill(bad, torch.nan), call) if call.entropy else None,
        kept_ids(keep, call) if call.keep else None,
    )


def kept_ids(keep: Tensor, call: Call) -> KeepSet:
    """The mask's ids. Where nothing may be read back, in a buffer for the most there could be."""
    if _may_look(keep):
        return KeepSet.from_mask(keep)
    indptr = torch.zeros(call.num_rows + 1, dtype=torch.int64, device=keep.device)
    torch.cumsum(keep.sum(-1), 0, out=indptr[1:])
    place = indptr[:-1, None] + keep.cumsum(-1) - 1
    ids = torch.arange(call.vocab_size, device=keep.device, dtype=torch.int32).expand_as(place)
    buffer = torch.zeros(call.capacity + 1, dtype=torch.int32, device=keep.device)
    buffer = buffer.scatter(0, place.where(keep, call.capacity).flatten(), ids.flatten())
    return KeepSet(indptr, buffer[:-1])


def _column(values: Tensor | None, value: float, z: Tensor) -> Tensor:
    if values is not None:
        return values[:, None]
    return torch.full((len(z), 1), value, dtype=torch.float64, device=z.device)


def _may_look(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _check(call: Call, name: str, values: Tensor, bad: Tensor) -> Tensor:
    """Bad rows raise where looking is free (eager, on a CPU) and are marked elsewhere."""
    if _may_look(bad) and bad.any():
        row = int(bad[:, 0].int().argmax())
        raise ValueError(
            f"{name}: expected {EXPECTED[name]}, got {values[row].item():g} in row {row}"
        )
    return bad


def _shaped(column: Tensor, call: Call) -> Tensor:
    wide = torch.float64 if call.logits.dtype == torch.float64 else torch.float32
    return column.to(wide).reshape(call.logits.shape[:-1])
