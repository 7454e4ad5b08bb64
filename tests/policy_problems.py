"""Problems of linear_policy_loss, and a call of it as loss, metrics and gradients by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from logpi import linear_log_probs, linear_policy_loss
from logpi.objectives import CISPO, DualClip, PPOClip, Reinforce
from logpi.ops.linear_log_probs._plan import with_rest
from logpi.testing import assert_all_within_budget, nan_empty

if TYPE_CHECKING:
    from rows import Row

Problem = dict[str, Any]
OBJECTIVES = (PPOClip(0.2, 0.28), DualClip(), CISPO(), Reinforce())
SEEDS = (0, 1, 2, 3)
LEAVES = ("hidden_states", "weight", "bias")
# 39 rows are no multiple of 16. V is prime, and a row of 1024 is the least that a workspace holds.
B, T, D, V = 3, 13, 24, 1021
ROW_BYTES = 4 * 1024
# log(old / new), far from where a rounding would clip or not: log 1.2 is 0.18, log 3 is 1.1.
LOG_RATIOS = torch.tensor([0.0, 0.03, -0.03, 0.6, -0.6, 2.0, -3.0])


def problem(seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 0.3) -> Problem:
    """Ratios on all sides of every clip; a third of the advantages 0, the others of both signs."""
    g = torch.Generator().manual_seed(seed)
    p: Problem = {
        "hidden_states": torch.randn(B, T, D, generator=g).to(dtype),
        "weight": (scale * torch.randn(V, D, generator=g)).to(dtype),
        "bias": (0.3 * torch.randn(V, generator=g)).to(dtype),
        "token_ids": torch.randint(V, (B, T), generator=g),
        "loss_mask": torch.rand(B, T, generator=g) < 0.7,
        "advantages": torch.randn(B, T, generator=g).where(
            torch.rand(B, T, generator=g) < 0.7, 0.0
        ),
    }
    wide = {k: v.double() if v.is_floating_point() else v for k, v in p.items()}
    head = wide["hidden_states"], wide["weight"], wide["token_ids"]
    log_probs = linear_log_probs(*head, bias=wide["bias"], backend="torch").log_probs.float()
    at = torch.randint(len(LOG_RATIOS), (B, T), generator=g)
    p["old_log_probs"] = log_probs + LOG_RATIOS[at]
    p["ref_log_probs"] = log_probs + 0.3 * torch.randn(B, T, generator=g)
    return p


def evaluate(p: Problem, backend: str, upstream: float = 1.0, **options: Any) -> dict[str, Tensor]:
    """Loss, metrics, and the gradients of what is a leaf."""
    p = dict(p) if "kl" in options else {k: v for k, v in p.items() if k != "ref_log_probs"}
    leaves = {k: p[k].detach().clone().requires_grad_() for k in LEAVES if k in p}
    loss, metrics = linear_policy_loss(**p | leaves, backend=backend, **options)
    loss.backward(torch.tensor(upstream, dtype=loss.dtype))
    grads = {f"gradient of {name}": leaf.grad for name, leaf in leaves.items()}
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
    options.pop("logits_dtype", None)
    truth = stacked(evaluate(in_float64(p), "torch", **options) for p in problems)
    assert_all_within_budget(ours, yardstick, truth)
    return ours


def room_for(rows: int | None, row_bytes: int = ROW_BYTES) -> int | None:
    """The `workspace_bytes` that hold the logits of so many rows."""
    return None if rows is None else with_rest(rows * row_bytes)


def stacked(results: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    results = list(results)
    return {name: torch.stack([result[name] for result in results]) for name in results[0]}


def problems(*args: Any, **options: Any) -> list[Problem]:
    return [problem(seed, *args, **options) for seed in SEEDS]


def old_log_probs(p: Problem, options: Problem) -> Tensor:
    """Those of the same options, moved by ratios far from any clip."""
    names = ("temperature", "softcap", "logit_scale", "vocab_size", "support", "logits_dtype")
    shared = {name: options[name] for name in names if name in options}
    head = p["hidden_states"], p["weight"], p["token_ids"]
    out = linear_log_probs(*head, bias=p["bias"], backend="torch", **shared)
    return out.log_probs + LOG_RATIOS[torch.arange(B * T).view(B, T) % len(LOG_RATIOS)]
