"""The cold start: the policy learns a few demonstrations by heart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from expert import Demonstrations
from policy import CODEC, Policy


def imitate(
    policy: Policy,
    shown: Demonstrations,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    on_step: Callable[[float], None] = lambda loss: None,
) -> None:
    """Maximises log p(the expert's tokens | state) over `steps` batches."""
    draw = torch.Generator().manual_seed(seed)
    states = torch.from_numpy(shown.states)
    token_ids = CODEC.encode(torch.from_numpy(shown.actions)).flatten(1)
    known = torch.from_numpy(shown.known).repeat_interleave(
        token_ids.shape[1] // shown.known.shape[1], 1
    )
    optimizer = torch.optim.AdamW(policy.parameters(), lr=learning_rate, weight_decay=0.01)
    for _ in range(steps):
        rows = torch.randint(len(states), (batch_size,), generator=draw)
        mask = known[rows]
        scored = policy.log_probs(states[rows], token_ids[rows], temperature=1.0, loss_mask=mask)
        loss = -scored.log_probs.sum() / mask.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        on_step(loss.item())
