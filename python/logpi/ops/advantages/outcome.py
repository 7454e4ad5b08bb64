"""Advantages from one reward a sequence: `[B]` in, `[B]` out, float64 in between."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from logpi.core import checks
from logpi.ops.advantages.groups import Groups, groups
from logpi.ops.gae.op import check_mask
from logpi.ops.gae.reference import whiten

SINGLETONS = ("reward", "zero")


def group_normalized(
    rewards: Tensor,  # [B]
    group_ids: Tensor,  # [B]
    *,
    eps: float = 1e-6,
    singletons: str = "reward",
) -> Tensor:  # [B]
    """GRPO: (R - mean) / (std + eps) over each row's group, std unbiased (arXiv:2402.03300).

    Args:
        rewards: `[B]` float, one a sequence.
        group_ids: `[B]` int64 (or int32), equal where sequences answer the same prompt. Any values
            in any order.
        eps: added to the standard deviation.
        singletons: what a group of one gets, which has nothing to be compared with: "reward", its
            reward as if mean were 0 and std 1, as trainers do; or "zero".

    Returns:
        `[B]` float32 (float64 for float64 rewards), without gradient; `advantages[:, None]` goes
        with tokens. Everything here is added in float64; the bits depend neither on how the batch
        is ordered nor on what groups are called, and NaN stays in its group.

    Raises:
        ValueError: a shape or value.  TypeError: a dtype.
    Source: docs/ops/advantages.md.
    """
    checks.not_negative("eps", eps)
    of = _outcome(rewards, group_ids, singletons)
    return of.result(of.centered() / (of.std() + eps))


def group_centered(rewards: Tensor, group_ids: Tensor, *, singletons: str = "reward") -> Tensor:
    """Dr. GRPO: R - mean of the group (arXiv:2503.20783). Arguments as in `group_normalized`."""
    of = _outcome(rewards, group_ids, singletons)
    return of.result(of.centered())


def rloo(rewards: Tensor, group_ids: Tensor, *, singletons: str = "reward") -> Tensor:
    """R - mean of the others of the group = n / (n - 1) (R - mean) (arXiv:2402.14740)."""
    of = _outcome(rewards, group_ids, singletons)
    size = of.groups.size
    return of.result(of.centered() * torch.where(size > 1, size / (size - 1).clamp(min=1), 1.0))


def opo(
    rewards: Tensor,
    group_ids: Tensor,
    loss_mask: Tensor,  # [B, T]
    *,
    singletons: str = "reward",
) -> Tensor:
    """R - sum(length R) / sum(length) over the group (arXiv:2505.23585).

    `loss_mask` is `[B, T]`; a length is how many tokens it keeps. In a group without any token the
    baseline is 0.
    """
    of = _outcome(rewards, group_ids, singletons)
    length = _lengths(loss_mask, rewards)
    total = of.groups.sum(length)
    weighted = of.groups.sum((length * of.rewards).where(length > 0, 0.0))
    return of.result(of.rewards - of.baseline((weighted / total).where(total > 0, 0.0)))


def gpg(rewards: Tensor, group_ids: Tensor, *, singletons: str = "reward") -> Tensor:
    """alpha (R - mean of the group), alpha = B / (rewards that are not 0) (arXiv:2504.02546)."""
    of = _outcome(rewards, group_ids, singletons)
    alpha = len(rewards) / (of.rewards != 0).sum().clamp(min=1)
    return of.result(of.centered() * alpha)


def pass_at_k(rewards: Tensor, group_ids: Tensor, *, eps: float = 1e-6) -> Tensor:
    """(R_max - R_second) / (std + eps) for the best of each group, 0 for the others.

    Where two share the first place the difference, and so everybody's advantage, is 0; so it is in
    a group of one, which has no second.
    """
    checks.not_negative("eps", eps)
    of = _outcome(rewards, group_ids, "zero")
    batch = torch.arange(len(rewards), device=rewards.device)
    best = of.groups.first(batch) == batch
    lead = of.rewards - of.groups.first(of.rewards, 1)
    return of.result((lead / (of.std() + eps)).where(best & (of.groups.size > 1), 0.0))


def reinforce_plus_plus_baseline(
    rewards: Tensor,
    group_ids: Tensor,
    loss_mask: Tensor,  # [B, T]
    *,
    singletons: str = "reward",
) -> Tensor:
    """R - mean of the group, whitened over the tokens of the batch (arXiv:2501.03262).

    A sequence counts once for each token of `loss_mask` `[B, T]`: (x - mean) / sqrt(var + 1e-8),
    var unbiased. Without a token it gets 0; so do all where the batch has one token.
    """
    of = _outcome(rewards, group_ids, singletons)
    return of.result(whiten(of.centered(), _lengths(loss_mask, rewards)))


def gdpo(
    rewards: Tensor,  # [B, K]
    group_ids: Tensor,
    loss_mask: Tensor,  # [B, T]
    *,
    weights: Sequence[float] | None = None,
    eps: float = 1e-6,
    singletons: str = "reward",
) -> Tensor:  # [B]
    """Each of K rewards normalised in its group, their weighted sum whitened over the tokens of
    the batch (arXiv:2601.05242).

    Args:
        rewards: `[B, K]` float, K rewards a sequence.
        loss_mask: `[B, T]`, see `reinforce_plus_plus_baseline`.
        weights: K numbers; None: 1 each.
        group_ids, eps, singletons: as in `group_normalized`.
    """
    checks.dtype("rewards", rewards, *checks.FLOATS)
    if rewards.dim() != 2 or not rewards.shape[1]:
        raise ValueError(f"rewards: expected shape [B, K] with K > 0, got {tuple(rewards.shape)}")
    weights = [1.0] * rewards.shape[1] if weights is None else weights
    if len(weights) != rewards.shape[1]:
        raise ValueError(f"weights: expected {rewards.shape[1]}, one a reward, got {len(weights)}")
    for weight in weights:
        checks.number("weights", weight)
    total = sum(
        weight * group_normalized(one, group_ids, eps=eps, singletons=singletons)
        for weight, one in zip(weights, rewards.detach().double().unbind(-1), strict=True)
    )
    assert isinstance(total, Tensor)
    return whiten(total, _lengths(loss_mask, rewards)).to(dtype_of(rewards))


# ---- what they share ----------------------------------------------------------------------------


class _Outcome:
    """Rewards `[B]` in float64 and their groups."""

    def __init__(self, rewards: Tensor, groups: Groups, singletons: str, dtype: torch.dtype):
        self.rewards, self.groups, self.dtype = rewards, groups, dtype
        self.singletons = singletons
        self.mean = groups.mean(rewards)

    def baseline(self, value: Tensor) -> Tensor:
        """`value`; in a group of one 0, or where such a group gets nothing, its reward."""
        alone = self.rewards if self.singletons == "zero" else torch.zeros_like(value)
        return value.where(self.groups.size > 1, alone)

    def centered(self) -> Tensor:
        return self.rewards - self.baseline(self.mean)

    def std(self) -> Tensor:
        """Unbiased; 1 in a group of one."""
        size = self.groups.size
        squares = self.groups.sum((self.rewards - self.mean).square())
        return (squares / (size - 1).clamp(min=1)).sqrt().where(size > 1, 1.0)

    def result(self, advantages: Tensor) -> Tensor:
        return advantages.to(self.dtype)


def _outcome(rewards: Tensor, group_ids: Tensor, singletons: str) -> _Outcome:
    checks.dtype("rewards", rewards, *checks.FLOATS)
    if rewards.dim() != 1:
        raise ValueError(f"rewards: expected shape [B], got {tuple(rewards.shape)}")
    check_group_ids(group_ids, rewards)
    if singletons not in SINGLETONS:
        known = " or ".join(repr(name) for name in SINGLETONS)
        raise ValueError(f"singletons: expected {known}, got {singletons!r}")
    wide = rewards.detach().double()
    return _Outcome(wide, groups(group_ids, wide), singletons, dtype_of(rewards))


def check_group_ids(group_ids: Tensor, rewards: Tensor) -> None:
    checks.dtype("group_ids", group_ids, torch.int64, torch.int32)
    checks.shape("group_ids", group_ids, rewards.shape[:1])
    checks.device("group_ids", group_ids, rewards.device)


def dtype_of(rewards: Tensor) -> torch.dtype:
    """Of what is made of them."""
    return torch.float64 if rewards.dtype == torch.float64 else torch.float32


def _lengths(loss_mask: Tensor, rewards: Tensor) -> Tensor:
    """`[B]` float64: how many tokens each sequence has."""
    mask = check_mask(loss_mask)
    checks.shape("loss_mask", mask, (len(rewards), mask.shape[1]))
    checks.device("loss_mask", mask, rewards.device)
    return mask.sum(-1).double()
