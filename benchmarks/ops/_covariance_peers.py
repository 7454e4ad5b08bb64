"""What verl and the paper's code do to select tokens, in our words: eagerly, host syncs and all.

trainer/ppo/core_algos.py, compute_policy_loss_clip_cov and compute_policy_loss_kl_cov, without the
loss around the selection. Both select within a micro-batch of one rank.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / (mask.sum() + 1e-8)


def clip_cov(
    log_probs: Tensor, advantages: Tensor, mask: Tensor, clipped: Tensor, fraction: float
) -> Tensor:
    """True where the gradient is dropped; `clipped`: the tokens that the ratio clip has taken."""
    keep = torch.ones_like(advantages)
    centred = advantages - masked_mean(advantages, mask)
    c = centred * (log_probs - masked_mean(log_probs.detach(), mask))
    c[mask == 0] = -torch.inf
    c[clipped] = -torch.inf
    wanted = max(int(fraction * mask.sum().item()), 1)
    candidates = torch.nonzero((c < 5.0) & (c > 1.0) & (mask > 0))
    if len(candidates) > 0:
        order = torch.randperm(len(candidates))
        taken = candidates[order[: min(wanted, len(candidates))]]
        keep[taken[:, 0], taken[:, 1]] = 0
    return keep == 0


def kl_cov(log_probs: Tensor, advantages: Tensor, mask: Tensor, fraction: float) -> Tensor:
    """True where the penalty is added."""
    taken = torch.zeros_like(mask, dtype=torch.bool)
    valid = mask > 0
    valid_advantages = advantages[valid].detach().reshape(-1).cpu()
    valid_log_probs = log_probs[valid].detach().reshape(-1).cpu()
    where = torch.nonzero(mask.reshape(-1) > 0, as_tuple=True)[0]
    if len(valid_advantages) > 0:
        centred = valid_advantages - valid_advantages.mean()
        c = centred * (valid_log_probs - valid_log_probs.mean())
        largest = torch.topk(c, max(1, int(len(c) * fraction)), largest=True).indices
        if len(largest) > 0:
            chosen = where[largest.to(where.device)]
            taken[chosen // mask.shape[1], chosen % mask.shape[1]] = True
    return taken
