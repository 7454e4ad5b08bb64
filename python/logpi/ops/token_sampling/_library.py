"""sample_tokens as a torch.library op: what torch.compile sees. Eager calls do not come here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logpi.core.support import KeepSet
from logpi.ops.token_sampling.op import BACKENDS, Call, TokenSample

_LIBRARY: Any = torch.library.Library("logpi", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "sample_tokens(str row, Tensor logits, Tensor? row_ids, Tensor? temperatures, Tensor? top_ks, "
    "Tensor? top_ps, Tensor? min_ps, Tensor? step_at, SymInt num_rows, SymInt vocab_size, "
    "float temperature, SymInt top_k, float top_p, float min_p, SymInt seed, SymInt step, "
    "bool greedy, bool truncated, bool entropy, bool keep) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_ROWS = {row.name: row for row in BACKENDS}


def sample_tokens(row: str, call: Call) -> TokenSample:
    ids, log_probs, entropy, indptr, indices = torch.ops.logpi.sample_tokens(row, *call)
    return TokenSample(
        ids,
        log_probs,
        entropy if call.entropy else None,
        KeepSet(indptr, indices) if call.keep else None,
    )


def _forward(row: str, *args: Any) -> tuple[Tensor, ...]:
    call = Call(*args)
    ids, log_probs, entropy, keep = _ROWS[row].kernels.forward(call, spare=True)
    empty = call.logits.new_empty
    return (
        ids,
        log_probs,
        empty(0, dtype=torch.float32) if entropy is None else entropy,
        empty(0, dtype=torch.int64) if keep is None else keep.indptr,
        empty(0, dtype=torch.int32) if keep is None else keep.indices,
    )


def _fake_forward(_row: str, *args: Any) -> tuple[Tensor, ...]:
    call = Call(*args)
    lead, new = call.logits.shape[:-1], call.logits.new_empty
    return (
        new(lead, dtype=torch.int64),
        new(lead, dtype=torch.float32),
        new(lead if call.entropy else 0, dtype=torch.float32),
        new(call.num_rows + 1 if call.keep else 0, dtype=torch.int64),
        new(call.capacity if call.keep else 0, dtype=torch.int32),
    )


for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("sample_tokens", _forward, _key)
torch.library.register_fake("logpi::sample_tokens", _fake_forward, lib=_LIBRARY)
