"""verl's registered losses, aggregations and KL estimates beside ours: values and gradients.

Its functions are called as they are, in float64, where both sides compute the same formula and
differ by rounding alone. tests/verl-requirements.txt says what to install.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from logpi import policy_loss
from logpi.core.masked import AGGREGATIONS, token_weights
from logpi.objectives import (
    CISPO,
    DPPOKL,
    DPPOTV,
    DRO,
    GMPO,
    GPG,
    GSPO,
    KL,
    SAPO,
    ClipCov,
    DualClip,
    KLCov,
    RolloutImportance,
)

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]

float64 = torch.float64
B, T = 6, 17
LOW, HIGH, C = 0.2, 0.28, 3.0
SEQUENCES = {"aggregation": "seq-mean-token-mean"}


def config(mode: str) -> Any:
    from verl.workers.config.actor import ActorConfig, PolicyLossConfig

    policy = PolicyLossConfig(
        loss_mode=mode,
        clip_cov_ratio=0.05,
        clip_cov_lb=0.1,
        clip_cov_ub=5.0,
        kl_cov_ratio=0.05,
        ppo_kl_coef=0.7,
        dro_beta=0.3,
    )
    return ActorConfig(
        strategy="fsdp",
        rollout_n=4,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio=LOW,
        clip_ratio_low=LOW,
        clip_ratio_high=HIGH,
        clip_ratio_c=C,
        tau_pos=1.0,
        tau_neg=1.05,
        policy_loss=policy,
    )


def batch(seed: int = 0) -> dict[str, Tensor]:
    """Ratios on both sides of every clip; every row has a token."""
    g = torch.Generator().manual_seed(seed)
    log_probs = -torch.rand(B, T, generator=g, dtype=float64) * 3 - 0.05
    mask = torch.rand(B, T, generator=g) < 0.8
    mask[:, 0] = True
    old = log_probs + 0.6 * torch.randn(B, T, generator=g, dtype=float64)
    advantages = torch.randn(B, 1, generator=g, dtype=float64).expand(B, T)  # GMPO has one a row
    return {
        "log_probs": log_probs,
        "old_log_probs": old.clamp(max=-0.01),
        "advantages": advantages.contiguous(),
        "loss_mask": mask,
    }


def theirs(
    verl: Any, mode: str, b: dict[str, Tensor], aggregation: str, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    x = b["log_probs"].clone().requires_grad_()
    loss, metrics = verl.get_policy_loss_fn(mode)(
        b["old_log_probs"], x, b["advantages"], b["loss_mask"].to(float64), aggregation,
        config(mode), weights,
    )  # fmt: skip
    (grad,) = torch.autograd.grad(loss, x)
    return loss.detach(), grad * b["loss_mask"], metrics


def ours(b: dict[str, Tensor], **options: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    x = b["log_probs"].clone().requires_grad_()
    loss, metrics = policy_loss(**b | {"log_probs": x}, **options)
    (grad,) = torch.autograd.grad(loss, x)
    return loss.detach(), grad, metrics


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    """To the 1e-8 in its denominators."""
    for name, mine, verls in zip(("loss", "gradient"), one, other, strict=False):
        error = (mine - verls).abs().max() / verls.abs().max()
        assert error < 1e-7, (name, error.item())


MODES = {
    "vanilla": DualClip(LOW, HIGH, C),
    "dppo_tv": DPPOTV(LOW, HIGH, C),
    "dppo_kl": DPPOKL(LOW, HIGH, C),
    "gpg": GPG(),
    "cispo": CISPO(LOW, HIGH),
    "dro": DRO(0.3),
}


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("mode", MODES)
def test_token_level_losses(verl: Any, mode: str, aggregation: str) -> None:
    for seed in range(3):
        b = batch(seed)
        options = {"objective": MODES[mode], "aggregation": aggregation}
        same(ours(b, **options), theirs(verl, mode, b, aggregation))


@pytest.mark.parametrize(
    ("mode", "objective"),
    [("gspo", GSPO(LOW, HIGH)), ("sapo", SAPO()), ("geo_mean", GMPO(LOW, HIGH))],
)
def test_losses_with_an_aggregation_of_their_own(verl: Any, mode: str, objective: Any) -> None:
    for seed in range(3):
        b = batch(seed)
        expected = theirs(verl, mode, b, "seq-mean-token-mean")
        same(ours(b, objective=objective, **SEQUENCES), expected)


def covariances(b: dict[str, Tensor]) -> Tensor:
    mask = b["loss_mask"]
    centred = [x - x[mask].mean() for x in (b["advantages"], b["log_probs"])]
    return centred[0] * centred[1]


def test_kl_cov(verl: Any) -> None:
    for seed in range(3):
        b = batch(seed)
        count = max(1, int(b["loss_mask"].sum() * 0.05))
        largest = covariances(b).masked_fill(~b["loss_mask"], -torch.inf).flatten().topk(count)
        selection = torch.zeros(B * T, dtype=torch.bool)
        selection[largest.indices] = True
        options = {"objective": KLCov(0.7), "selection": selection.view(B, T)}
        same(ours(b, **options), theirs(verl, "kl_cov", b, "token-mean"))


def test_clip_cov(verl: Any) -> None:
    """Whom it drew is read off its gradient; that they are candidates, and how many, is ours."""
    objective = ClipCov(LOW, HIGH)
    for seed in range(3):
        b = batch(seed)
        torch.manual_seed(seed)
        expected = theirs(verl, "clip_cov", b, "token-mean")
        excluded = objective.clipped(b["log_probs"], b["old_log_probs"], b["advantages"])
        selection = (expected[1] == 0) & b["loss_mask"] & ~excluded
        c = covariances(b)
        candidates = (c > 0.1) & (c < 5.0) & b["loss_mask"] & ~excluded
        assert not (selection & ~candidates).any()
        wanted = max(int(0.05 * b["loss_mask"].sum()), 1)
        assert selection.sum() == min(wanted, int(candidates.sum()))
        same(ours(b, objective=objective, selection=selection), expected)


def test_metrics_of_the_plain_loss(verl: Any) -> None:
    b = batch()
    (*_, metrics), (*_, told) = (
        ours(b, objective=MODES["vanilla"]),
        theirs(verl, "vanilla", b, "token-mean"),
    )
    expected = {key.rpartition("/")[2]: float(value) for key, value in told.items()}
    clipped = metrics["clip_fraction_low"] + metrics["clip_fraction_high"]
    assert clipped.item() == pytest.approx(expected["pg_clipfrac"], rel=1e-7)
    assert metrics["approx_kl_k1"].item() == pytest.approx(expected["ppo_kl"], rel=1e-7)
    dual = metrics["clip_fraction_dual"].item()
    assert dual == pytest.approx(expected["pg_clipfrac_lower"], rel=1e-7)


def test_importance_weights(verl: Any) -> None:
    b = batch()
    rollout = b["old_log_probs"] + 0.5 * torch.randn(B, T, dtype=float64)
    for level in ("token", "sequence"):
        importance = RolloutImportance(level)
        weights, _ = importance.weights(b["old_log_probs"], rollout, b["loss_mask"])
        options = {"importance": importance, "rollout_log_probs": rollout}
        expected = theirs(verl, "vanilla", b, "token-mean", weights)
        same(ours(b, objective=MODES["vanilla"], **options), expected)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_aggregations(verl: Any, aggregation: str) -> None:
    mask, values = batch()["loss_mask"], torch.randn(B, T, dtype=float64)
    mask[2] = False  # a sequence without tokens does not count
    expected = verl.agg_loss(values, mask.to(float64), aggregation)
    mine = (token_weights(mask, aggregation, dtype=float64) * values).sum()
    assert mine.item() == pytest.approx(expected.item(), rel=1e-7)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "abs", "k1+", "k3+", "abs+"])
def test_kl_estimates(verl: Any, estimator: str) -> None:
    ref, b = torch.randn(B, T, dtype=float64) * 3 - 2, batch()
    found = []
    for function in (
        lambda x: KL(1.0, estimator).token_values(x, ref),
        lambda x: verl.kl_penalty(x, ref, estimator),
    ):
        x = b["log_probs"].clone().requires_grad_()
        values = function(x)
        found.append((values.detach(), torch.autograd.grad(values.sum(), x)[0]))
    same(*found)
