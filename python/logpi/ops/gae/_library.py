"""gae as a torch.library op: what torch.compile sees. Eager calls do not come here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logpi.ops.gae.op import BACKENDS, Call, Gae

_LIBRARY: Any = torch.library.Library("logpi", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "gae(str row, Tensor rewards, Tensor values, Tensor loss_mask, float gamma, float lam, "
    "bool whiten) -> (Tensor, Tensor)"
)
_ROWS = {row.name: row for row in BACKENDS}


def gae(row: str, call: Call) -> Gae:
    return Gae._make(torch.ops.logpi.gae(row, *call))


def _forward(row: str, *args: Any) -> tuple[Tensor, Tensor]:
    out: Gae = _ROWS[row].kernels.forward(Call(*args))
    return out.advantages, out.returns


def _fake_forward(_row: str, rewards: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rewards), torch.empty_like(rewards)


for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("gae", _forward, _key)
torch.library.register_fake("logpi::gae", _fake_forward, lib=_LIBRARY)
