"""Supervised where a group fails and reinforced where it succeeds: HPT, of arXiv:2509.04419.

    L = α L_RL + β L_SFT,   α and β functions of how many of a prompt's n rollouts were solved

In a batch of it each prompt has its rollouts and one demonstration, a row each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from logpi.core import checks
from logpi.core.backends import AUTO
from logpi.core.masked import Count
from logpi.core.metrics import Metrics
from logpi.ops.policy_loss.base import Objective
from logpi.ops.policy_loss.loss import PolicyLoss
from logpi.ops.policy_loss.objectives import Reinforce, Surrogate
from logpi.ops.policy_loss.offline import LUFFY
from logpi.ops.policy_loss.op import check_objective, policy_loss


class HPTRows(NamedTuple):
    """What each row counts in each part of the loss, `[B]` float64; 0: it has no part."""

    rl: Tensor
    off_policy: Tensor
    sft: Tensor


class _Mixture:
    rl: Objective

    def select(self, num_solved: Tensor, is_demonstration: Tensor) -> HPTRows:
        """What each row counts.

        Args:
            num_solved: `[B]` integers: how many rollouts of the row's prompt were solved.
            is_demonstration: `[B]` bool.
        """
        checks.dtype("num_solved", num_solved, torch.int64, torch.int32)
        checks.dtype("is_demonstration", is_demonstration, torch.bool)
        if num_solved.dim() != 1:
            raise ValueError(f"num_solved: expected shape [B], got {tuple(num_solved.shape)}")
        checks.shape("is_demonstration", is_demonstration, num_solved.shape)
        checks.device("is_demonstration", is_demonstration, num_solved.device)
        return self._select(num_solved, is_demonstration)

    def _select(self, num_solved: Tensor, is_demonstration: Tensor) -> HPTRows:
        raise NotImplementedError

    def _off_policy(self) -> Objective | None:
        return None

    def loss(
        self,
        log_probs: Tensor,  # [B, T]
        old_log_probs: Tensor,  # [B, T]
        advantages: Tensor,  # [B, T] or [B]
        loss_mask: Tensor,  # [B, T]
        *,
        num_solved: Tensor,  # [B]
        is_demonstration: Tensor,  # [B]
        num_sequences: Count = None,
        horizon: float | None = None,
        num_sft_tokens: Count = None,
        backend: str = AUTO,
    ) -> PolicyLoss:
        """Rollouts and off-policy demonstrations by "seq-mean-token-sum-norm" with one count, the
        others by the mean over their tokens. With the counts of all micro-batches given, the
        balance of the two does not depend on how rows are packed.

        Args:
            log_probs, old_log_probs, advantages, loss_mask, horizon, backend: as in `policy_loss`.
            num_solved, is_demonstration: as in `select`.
            num_sequences: of the first part; None: those of this call. 1: the authors' sum.
            num_sft_tokens: of the second part; None: those of this call.

        Returns:
            `PolicyLoss`: metrics are those of each part, as "rl_..", "off_policy_.." and "sft_..".
        """
        checks.tensor("loss_mask", loss_mask)
        checks.tensor("advantages", advantages)
        rows = self.select(num_solved, is_demonstration)
        if loss_mask.dim() != 2 or len(loss_mask) != len(num_solved):
            shape = f"[{len(num_solved)}, T]"
            raise ValueError(f"loss_mask: expected shape {shape}, got {tuple(loss_mask.shape)}")
        mask = loss_mask.bool()
        masks = HPTRows._make(mask & (row != 0)[:, None] for row in rows)
        if num_sequences is None:
            num_sequences = (masks.rl | masks.off_policy).any(-1).sum().clamp(min=1)
        if num_sft_tokens is None:
            num_sft_tokens = masks.sft.sum().clamp(min=1)
        one_each = advantages if advantages.dim() == 2 else advantages[:, None]
        total: Tensor | None = None
        metrics: dict[str, Tensor] = {}
        for name, objective in (("rl", self.rl), ("off_policy", self._off_policy())):
            if objective is None:
                continue
            part_mask = getattr(masks, name)
            scaled = (one_each * getattr(rows, name)[:, None]).expand_as(mask)
            part = policy_loss(
                log_probs, old_log_probs, scaled, part_mask, objective=objective,
                aggregation="seq-mean-token-sum-norm", num_sequences=num_sequences,
                horizon=horizon, backend=backend,
            )  # fmt: skip
            total = part.loss if total is None else total + part.loss
            metrics |= {f"{name}_{key}": value for key, value in part.metrics.items()}
        sft = policy_loss(  # SFT is Reinforce with an advantage of 1
            log_probs, old_log_probs, rows.sft[:, None].expand_as(mask), masks.sft,
            objective=Reinforce(), num_tokens=num_sft_tokens, backend=backend,
        )  # fmt: skip
        metrics |= {f"sft_{key}": value for key, value in sft.metrics.items()}
        loss = sft.loss if total is None else total + sft.loss
        return PolicyLoss(loss, Metrics(metrics))


@dataclass(frozen=True)
class HPT(_Mixture):
    """A hard switch by the number of solved rollouts s of a prompt (arXiv:2509.04419):

        s <= gate                      its demonstration alone, supervised
        gate < s <= off_policy_gate    its demonstration alone, as off-policy data
        else                           its rollouts alone

    Attributes:
        gate: 0: supervised where every rollout failed.
        off_policy_gate: None: `gate`, and nothing is off-policy.
        sft_coef: of the supervised loss.
        rl: the objective of rollouts; the authors' code has no clip.
        off_policy: the objective of off-policy demonstrations.
    """

    gate: int = 0
    off_policy_gate: int | None = None
    sft_coef: float = 1.0
    rl: Objective = Surrogate()  # noqa: RUF009  frozen
    off_policy: Objective = LUFFY()  # noqa: RUF009

    def __post_init__(self) -> None:
        checks.at_least("HPT.gate", self.gate, 0)
        if self.off_policy_gate is not None:
            checks.at_least("HPT.off_policy_gate", self.off_policy_gate, self.gate)
        checks.positive("HPT.sft_coef", self.sft_coef)
        check_objective(self.rl)
        check_objective(self.off_policy)

    def _off_policy(self) -> Objective | None:
        return self.off_policy if (self.off_policy_gate or 0) > self.gate else None

    def _select(self, num_solved: Tensor, is_demonstration: Tensor) -> HPTRows:
        last = self.gate if self.off_policy_gate is None else self.off_policy_gate
        taught, switched = num_solved <= self.gate, num_solved <= last
        return HPTRows(
            (~is_demonstration & ~switched).double(),
            (is_demonstration & switched & ~taught).double(),
            (is_demonstration & taught).double() * self.sft_coef,
        )


@dataclass(frozen=True)
class SoftHPT(_Mixture):
    """α and β as tables by the number of solved rollouts: rollouts and demonstration together.

    Attributes:
        rl_coefs, sft_coefs: α and β, one for each number of solved rollouts from 0 to n.
        rl: the objective of rollouts; α multiplies its advantages.
    """

    rl_coefs: tuple[float, ...]
    sft_coefs: tuple[float, ...]
    rl: Objective = Surrogate()  # noqa: RUF009  frozen

    def __post_init__(self) -> None:
        for name in ("rl_coefs", "sft_coefs"):
            for value in getattr(self, name):
                checks.not_negative(f"SoftHPT.{name}", value)
        if not self.rl_coefs or len(self.rl_coefs) != len(self.sft_coefs):
            raise ValueError(
                f"SoftHPT.sft_coefs: expected as many as rl_coefs, {len(self.rl_coefs)}, and at "
                f"least one, got {len(self.sft_coefs)}"
            )
        check_objective(self.rl)
        if not self.rl.zero_at_zero_advantage:
            raise ValueError(
                "SoftHPT.rl: expected an objective that is linear in the advantage, got "
                f"{type(self.rl).__name__}"
            )

    def _select(self, num_solved: Tensor, is_demonstration: Tensor) -> HPTRows:
        alpha, beta = (_looked_up(t, num_solved) for t in (self.rl_coefs, self.sft_coefs))
        rl, sft = alpha.where(~is_demonstration, 0.0), beta.where(is_demonstration, 0.0)
        return HPTRows(rl, torch.zeros_like(rl), sft)


def _looked_up(table: tuple[float, ...], at: Tensor) -> Tensor:
    """`table[at]`, ends extended; no table is copied to a GPU, which a capture would refuse."""
    out = torch.full(at.shape, table[0], dtype=torch.float64, device=at.device)
    for number, value in enumerate(table[1:], 1):
        out = out.masked_fill(at >= number, value)
    return out
