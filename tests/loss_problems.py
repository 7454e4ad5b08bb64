"""Problems of policy_loss, and a call of it as loss, metrics and gradients by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from logpi import policy_loss
from logpi.objectives import (
    CISPO,
    DPPOKL,
    DPPOTV,
    DRO,
    GMPO,
    GPG,
    GSPO,
    LUFFY,
    SAPO,
    SFT,
    ClipCov,
    DualClip,
    KLCov,
    Objective,
    PPOClip,
    Reinforce,
    Surrogate,
)
from logpi.testing import assert_all_within_budget, nan_empty

if TYPE_CHECKING:
    from rows import Row

Problem = dict[str, Any]
OF_A_TOKEN = (
    PPOClip(0.2, 0.28),
    DualClip(),
    CISPO(0.5, 0.2),
    SAPO(),
    DPPOTV(0.15, 0.1, 2.0),
    DPPOKL(0.05, 0.03, 2.0),
    DRO(0.7),
    Surrogate(),
    Reinforce(),
    GPG(),
    SFT(),
    LUFFY(),
    LUFFY("p/(p+c)", 0.5),
    LUFFY("p^c", 0.3),
    LUFFY("p"),
    LUFFY("log p"),
    LUFFY("p + log p"),
    LUFFY("sqrt p"),
)
SELECTING = (ClipCov(0.2, 0.28), KLCov(0.7))
OF_A_SEQUENCE = (GSPO(0.2, 0.28), GMPO())
WITH_KERNELS = (*OF_A_TOKEN, *SELECTING)
EVERY = (*WITH_KERNELS, *OF_A_SEQUENCE)
SEEDS = (0, 1, 2, 3)
B, T = 5, 43  # 43: no multiple of any vector
LEAVES = ("log_probs", "entropy")
# log(old / new), far from where a rounding would clip or not: log 1.2 is 0.18, log 3 is 1.1.
LOG_RATIOS = torch.tensor([0.0, 0.03, -0.03, 0.6, -0.6, 2.0, -3.0])


def problem(seed: int = 0, batch: int = B, length: int = T) -> Problem:
    """Ratios on all sides of every clip; a third of the advantages 0, the others of both signs."""
    g = torch.Generator().manual_seed(seed)
    shape = batch, length

    def draw(value: float = 1.0) -> Tensor:
        return value * torch.randn(shape, generator=g)

    log_probs = -draw().abs() - 0.1
    at = torch.randint(len(LOG_RATIOS), shape, generator=g)
    nothing = torch.rand(shape, generator=g) < 0.3
    return {
        "log_probs": log_probs,
        "old_log_probs": log_probs + LOG_RATIOS[at],
        "advantages": draw().masked_fill(nothing, 0.0),
        "loss_mask": torch.rand(shape, generator=g) < 0.7,
        "ref_log_probs": log_probs + draw(0.3),
        "entropy": draw().abs(),
        "rollout_log_probs": log_probs + LOG_RATIOS[at] + draw(0.4),
        "selection": torch.rand(shape, generator=g) < 0.2,
    }


def evaluate(p: Problem, backend: str, upstream: float = 1.0, **options: Any) -> dict[str, Tensor]:
    """Loss, metrics, and the gradients; of a problem only what the options use."""
    used = {"log_probs", "old_log_probs", "advantages", "loss_mask"}
    used |= {"ref_log_probs"} if "kl" in options else set()
    used |= {"entropy"} if "entropy_coef" in options else set()
    used |= {"rollout_log_probs"} if "importance" in options else set()
    objective: Objective = options.get("objective", PPOClip())
    used |= {"selection"} if objective.selected_by else set()
    p = {k: v for k, v in p.items() if k in used}
    leaves = {k: p[k].detach().clone().requires_grad_() for k in LEAVES if k in p}
    loss, metrics = policy_loss(**p | leaves, backend=backend, **options)
    loss.backward(torch.tensor(upstream, dtype=loss.dtype))
    grads = {f"gradient of {k}": v.grad for k, v in leaves.items() if v.grad is not None}
    return {"loss": loss.detach(), **metrics, **grads}


def in_float64(p: Problem) -> Problem:
    floats = {k: v for k, v in p.items() if isinstance(v, Tensor) and v.is_floating_point()}
    return p | {k: v.double() for k, v in floats.items()}


def check(problems: list[Problem], row: Row, **options: Any) -> dict[str, Tensor]:
    """Within the budget: loss, every metric and every gradient, of all problems together, for the
    error of one mean is luck. Returns ours, stacked."""
    if row.tiny:
        problems = problems[:2]
    with nan_empty():
        ours = stacked(evaluate(p, row.backend, **options) for p in problems)
    yardstick = stacked(evaluate(p, "torch", **options) for p in problems)
    truth = stacked(evaluate(in_float64(p), "torch", **options) for p in problems)
    assert_all_within_budget(ours, yardstick, truth)
    return ours


def stacked(results: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    results = list(results)
    return {name: torch.stack([result[name] for result in results]) for name in results[0]}


def problems(*args: Any, **options: Any) -> list[Problem]:
    return [problem(seed, *args, **options) for seed in SEEDS]
