"""covariance_clip as a torch.library op: what torch.compile sees. Eager calls do not come here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logpi.ops.covariance_clip.op import BACKENDS, COVARIANCES, Call

_LIBRARY: Any = torch.library.Library("logpi", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "covariance_clip(str row, Tensor log_probs, Tensor advantages, Tensor loss_mask, "
    "Tensor? exclude, Tensor? step_at, int rule, float fraction, float lower, float upper, "
    "SymInt seed, SymInt step) -> Tensor"
)
_ROWS = {row.name: row for row in BACKENDS}


def evaluate(row: str, call: Call) -> Tensor:
    if call.process_group is not None:
        raise ValueError(
            f"process_group: expected None under torch.compile, got {call.process_group}"
        )
    out: Tensor = torch.ops.logpi.covariance_clip(row, *call[:-1])
    return out


def _evaluate(row: str, *args: Any) -> Tensor:
    out: Tensor = _ROWS[row].kernels.evaluate(Call._make((*args, None)))
    return out


def _fake(_row: str, *args: Any) -> Tensor:
    call = Call._make((*args, None))
    return torch.empty_like(call.log_probs if call.rule == COVARIANCES else call.loss_mask)


for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("covariance_clip", _evaluate, _key)
torch.library.register_fake("logpi::covariance_clip", _fake, lib=_LIBRARY)
