"""Advantages that differ from token to token: `[B, T]` out."""

from __future__ import annotations

import torch
from torch import Tensor

from logpi.core import checks
from logpi.ops.advantages.groups import groups
from logpi.ops.advantages.outcome import check_group_ids, dtype_of
from logpi.ops.gae.op import at_last_token, check_mask, gae


def reinforce_plus_plus(
    rewards: Tensor,  # [B, T] or [B]
    loss_mask: Tensor,  # [B, T]
    *,
    gamma: float = 1.0,
) -> Tensor:  # [B, T]
    """REINFORCE++: the discounted return from each token on, whitened over the tokens of the batch
    (arXiv:2501.03262): `gae` without a critic.

    Args:
        rewards: `[B, T]` float, one a token; or `[B]`, which a sequence's last token gets.
        loss_mask: `[B, T]` bool (or numbers: 0 is False). Masked tokens are skipped.
        gamma: discount of a token, in [0, 1].

    Returns:
        `[B, T]` float32 (float64 for float64 rewards), 0 where the mask is False.
    """
    rewards, mask = _checked(rewards, loss_mask)
    return gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma).advantages


def remax(
    rewards: Tensor,  # [B] or [B, T]
    greedy_rewards: Tensor,  # [B]
    loss_mask: Tensor | None = None,  # [B, T]
) -> Tensor:  # as the rewards
    """ReMax: the return less the reward of the greedy answer to the same prompt (arXiv:2310.10505).

    Args:
        rewards: `[B]` float, one a sequence: `[B]` comes back. Or `[B, T]`, one a token: the return
            from each token on, `[B, T]`, which needs a mask.
        greedy_rewards: `[B]` float.
        loss_mask: `[B, T]` bool (or numbers: 0 is False), with rewards a token alone.
    """
    checks.dtype("rewards", rewards, *checks.FLOATS)
    checks.dtype("greedy_rewards", greedy_rewards, *checks.FLOATS)
    checks.shape("greedy_rewards", greedy_rewards, rewards.shape[:1])
    checks.device("greedy_rewards", greedy_rewards, rewards.device)
    if (rewards.dim() == 2) != (loss_mask is not None):
        raise ValueError(
            "loss_mask: expected one with rewards [B, T] and with no others, got "
            f"{'none' if loss_mask is None else 'one'} with rewards {tuple(rewards.shape)}"
        )
    dtype, baseline = dtype_of(rewards), greedy_rewards.detach().double()
    if loss_mask is None:
        checks.shape("rewards", rewards, rewards.shape[:1])
        return (rewards.detach().double() - baseline).to(dtype)
    rewards, mask = _checked(rewards, loss_mask)
    return (_returns(rewards, mask) - baseline[:, None]).where(mask, 0.0).to(dtype)


def optimal_token_baseline(
    rewards: Tensor,  # [B, T] or [B]
    group_ids: Tensor,  # [B]
    log_probs: Tensor,  # [B, T]
    collision: Tensor,  # [B, T]
    loss_mask: Tensor,  # [B, T]
    *,
    importance: Tensor | None = None,  # [B, T]
    zero_tail: bool = False,
) -> Tensor:  # [B, T]
    """The return from each token on, less the baseline of least variance at that token.

        A_t = G_t - sum(G_t W_t) / sum(W_t)          sums over the group's sequences that have a t
        W_t = sum_(j <= t) (1 - 2 p_j + sum_v p_jv^2)    the squared norm of the score, added up

    Args:
        rewards: `[B, T]` float, one a token; or `[B]`, which a sequence's last token gets.
        group_ids: `[B]` int64 (or int32), equal where sequences answer the same prompt.
        log_probs: `[B, T]` of the policy that is updated, before the update.
        collision: `[B, T]`, sum p^2, as `token_log_probs(..., return_collision=True)` has it.
        loss_mask: `[B, T]` bool (or numbers: 0 is False). Masked tokens are never read.
        importance: `[B, T]` weights of off-policy tokens; their squares multiply the norms.
        zero_tail: where one sequence of a group is left, its baseline would be its own return, and
            its advantage 0. True: its baseline is 0 there, and its advantage the return.

    Returns:
        `[B, T]` float32 (float64 for float64 rewards), 0 where the mask is False. A group of one
        has baseline 0.
    """
    dtype = dtype_of(rewards)
    rewards, mask = _checked(rewards, loss_mask)
    check_group_ids(group_ids, rewards)
    p = _per_token("log_probs", log_probs, mask).exp()
    norms = 1 - 2 * p + _per_token("collision", collision, mask)
    # a squared norm: below 0 only by the rounding of p near 1
    norms = norms.clamp(min=0).where(mask, 0.0)
    if importance is not None:
        norms = norms * _per_token("importance", importance, mask).square()
    returns, path = _returns(rewards, mask), norms.cumsum(-1).where(mask, 0.0)
    of = groups(group_ids, group_ids)
    total, weighted = of.sum(path), of.sum(returns * path)
    compared = (total > 0) & (of.size > 1)[:, None]
    if zero_tail:
        compared &= of.sum(mask.double()) > 1
    baseline = torch.where(compared, weighted / total, 0.0)
    return (returns - baseline).where(mask, 0.0).to(dtype)


def _returns(rewards: Tensor, mask: Tensor) -> Tensor:
    """float64, what comes from each token on; 0 where the mask is False."""
    kept = rewards.double().where(mask, 0.0)
    return kept.flip(-1).cumsum(-1).flip(-1).where(mask, 0.0)


def _checked(rewards: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards `[B, T]` and the mask."""
    mask = check_mask(loss_mask)
    checks.dtype("rewards", rewards, *checks.FLOATS)
    checks.device("rewards", rewards, mask.device)
    rewards = rewards.detach()
    if rewards.dim() == 1:
        checks.shape("rewards", rewards, mask.shape[:1])
        return at_last_token(rewards, mask), mask
    checks.shape("rewards", rewards, mask.shape)
    return rewards, mask


def _per_token(name: str, x: Tensor, mask: Tensor) -> Tensor:
    checks.dtype(name, x, *checks.FLOATS)
    checks.shape(name, x, mask.shape)
    checks.device(name, x, mask.device)
    return x.detach().double().where(mask, 0.0)
