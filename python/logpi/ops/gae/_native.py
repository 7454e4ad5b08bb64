"""Addresses of tensors to the kernel in `_C`."""

from __future__ import annotations

import torch

from logpi import _C
from logpi.ops.gae.op import Call, Gae


def forward(call: Call) -> Gae:
    rewards, values, mask, gamma, lam, whiten = call
    out = Gae(torch.empty_like(rewards), torch.empty_like(rewards))
    moments = rewards.new_empty((len(mask), 3), dtype=torch.float64) if whiten else None
    _C.gae(
        rewards.data_ptr(),
        values.data_ptr(),
        mask.data_ptr(),
        *mask.shape,
        gamma,
        lam,
        out.advantages.data_ptr(),
        out.returns.data_ptr(),
        0 if moments is None else moments.data_ptr(),
        torch.get_num_threads(),
    )
    return out
