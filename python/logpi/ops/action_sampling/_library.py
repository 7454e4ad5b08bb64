"""action_sampling as a torch.library op: what torch.compile sees. Eager calls do not come here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logpi.ops.action_sampling.op import BACKENDS, ActionSample, Call

_LIBRARY: Any = torch.library.Library("logpi", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # entropy is empty where not asked for
    "action_sampling(str row, Tensor logits, Tensor table, Tensor? temperatures, Tensor? step_at, "
    "Tensor? row_ids, SymInt num_rows, SymInt num_bins, SymInt first_column, SymInt first_id, "
    "float temperature, SymInt seed, SymInt step, bool greedy, bool entropy) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_ROWS = {row.name: row for row in BACKENDS}


def sample(row: str, call: Call) -> ActionSample:
    out = ActionSample._make(torch.ops.logpi.action_sampling(row, *call))
    return out if call.entropy else out._replace(entropy=None)


def _sample(row: str, *args: Any) -> tuple[Tensor, ...]:
    call = Call(*args)
    out: ActionSample = _ROWS[row].kernels.sample(call)
    return tuple(call.logits.new_empty(0) if field is None else field for field in out)


def _fake(_row: str, *args: Any) -> tuple[Tensor, ...]:
    call = Call(*args)
    lead, new = call.logits.shape[:-1], call.logits.new_empty
    log_probs = new(lead, dtype=torch.float32)
    entropy = torch.empty_like(log_probs) if call.entropy else new(0)
    return new(lead, dtype=torch.int64), log_probs, entropy, torch.empty_like(log_probs)


for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("action_sampling", _sample, _key)
torch.library.register_fake("logpi::action_sampling", _fake, lib=_LIBRARY)
