"""The definition of token_log_probs in plain torch: any float dtype, differentiable any number of
times, and the oracle of every other row."""

from __future__ import annotations

import torch
from torch import Tensor

from logpi.core.support import KeepSet
from logpi.ops.token_log_probs.op import Call, TokenLogProbs


def token_log_probs(call: Call) -> TokenLogProbs:
    """Log-probs shaped as the ids and per-row numbers `[..]`, from `[.., V]` logits."""
    z = call.logits.reshape(call.num_rows, call.logits.shape[-1])[:, : call.vocab_size]
    z = z if z.dtype == torch.float64 else z.float()
    ids = call.token_ids.reshape(call.num_rows, call.ids_per_row)
    temperature, keep = _temperature(call, z.dtype), _keep_mask(call)
    if call.loss_mask is not None:  # masked rows are replaced before anything reads them
        dead = ~call.loss_mask[:, None]
        z, ids, temperature = z.where(~dead, 0.0), ids.where(~dead, 0), temperature.where(~dead, 1)
        keep = None if keep is None else keep | dead
    ids, temperature = _valid("token_ids", ids, call), _valid("temperature", temperature, call)

    z = z if keep is None else z.where(keep, 0.0)  # as padding, entries outside are never read
    x = call.logit_scale * z
    x = call.softcap * torch.tanh(x / call.softcap) if call.softcap else x
    x = x / temperature
    inside = x if keep is None else x.masked_fill(~keep, -torch.inf)
    log_p = torch.log_softmax(inside, -1)
    log_probs = log_p.gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, torch.nan)
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1)
    top1 = (ids == inside.argmax(-1, keepdim=True)) & ~log_probs.isnan()
    mean = x.mean(-1) if keep is None else x.sum(-1) / keep.sum(-1)
    fields = (
        log_probs,
        entropy if call.entropy else None,
        log_p.detach().mul(2).exp().sum(-1) if call.collision else None,
        inside.detach().logsumexp(-1) if call.lse else None,
        top1 if call.top1 else None,
        mean.detach() if call.mean_logit else None,
    )
    return TokenLogProbs._make(_shaped(field, call) for field in fields)


def _temperature(call: Call, dtype: torch.dtype) -> Tensor:
    """`[N, 1]`, or `[1, 1]` for the scalar."""
    if call.temperatures is not None:
        return call.temperatures.to(dtype)[:, None]
    return torch.full((1, 1), call.temperature, dtype=dtype, device=call.logits.device)


def _keep_mask(call: Call) -> Tensor | None:
    """`[N or 1, V]` bool, True inside the support; None where that is everything."""
    if call.keep_indptr is not None and call.keep_indices is not None:
        keep = KeepSet(call.keep_indptr, call.keep_indices)
        if call.logits.device.type == "cpu" and not torch.compiler.is_compiling():
            keep.check(call.vocab_size, call.loss_mask)
        return keep.to_mask(call.vocab_size)
    if (call.support_begin, call.support_end) == (0, call.vocab_size):
        return None
    at = torch.arange(call.vocab_size, device=call.logits.device)
    return ((at >= call.support_begin) & (at < call.support_end))[None]


def _valid(name: str, values: Tensor, call: Call) -> Tensor:
    """Bad values raise where looking is free (eager, on a CPU) and make NaN elsewhere."""
    instead: float = torch.nan
    if name == "token_ids":
        bad, expected = (values < 0) | (values >= call.vocab_size), f"ids in [0, {call.vocab_size})"
        instead = -1
    else:
        bad, expected = ~((values > 0) & values.isfinite()), "finite values above 0"
    if call.logits.device.type == "cpu" and not torch.compiler.is_compiling() and bad.any():
        row, column = bad.nonzero()[0].tolist()
        got = values[row, column].item()
        raise ValueError(f"{name}: expected {expected}, got {got} in row {row}")
    return values.masked_fill(bad, instead)


def _shaped(field: Tensor | None, call: Call) -> Tensor | None:
    """With the caller's leading dims, and 0 in masked rows."""
    if field is None:
        return None
    if call.loss_mask is not None:
        mask = call.loss_mask if field.dim() == 1 else call.loss_mask[:, None]
        field = field.where(mask, torch.zeros_like(field))
    return field.reshape(call.logits.shape[:-1] if field.dim() == 1 else call.token_ids.shape)
