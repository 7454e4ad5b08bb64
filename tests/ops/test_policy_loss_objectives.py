"""Objectives against numbers that trainers' own functions gave, and against derivatives by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from logpi.core.masked import token_weights
from logpi.objectives import (
    CISPO,
    DPPOKL,
    DPPOTV,
    DRO,
    GMPO,
    GSPO,
    KL,
    LUFFY,
    SAPO,
    SFT,
    DualClip,
    KLCov,
    Objective,
    PPOClip,
    Reinforce,
    RolloutImportance,
    Surrogate,
)

float64 = torch.float64
OLD = torch.tensor([[-0.5, -1.0, -2.0, -0.1], [-0.7, -3.0, -0.2, -0.4]], dtype=float64)
NEW = torch.tensor([[-0.4, -1.3, -1.2, -0.1], [-0.9, -2.0, -0.2, -9.0]], dtype=float64)
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()
ADVANTAGES = torch.tensor([[2.0], [-2.0]], dtype=float64).expand(2, 4)
TOKEN_LEVEL = (PPOClip(), DualClip(), CISPO(), Reinforce(), Surrogate(), SAPO(), DPPOTV(), LUFFY())


def mean(values: Tensor) -> float:
    return float(values[MASK].mean())


# The functions ran in float64 at clip 0.2 / 0.28 and c = 3; loss, and fraction of clipped tokens.
@pytest.mark.parametrize(
    ("objective", "loss", "clipped"),
    [
        (DualClip(0.2, 0.28, 3.0), 0.11743527, 1 / 7),
        (CISPO(0.2, 0.28), -0.10822552, 3 / 7),
        (Reinforce(), -0.02857143, None),
    ],
    ids=str,
)
def test_reference_losses(objective: Any, loss: float, clipped: float | None) -> None:
    args = NEW, OLD, ADVANTAGES
    assert mean(objective.token_losses(*args)) == pytest.approx(loss, abs=1e-8)
    metrics = {name: mean(values) for name, values in objective.token_metrics(*args).items()}
    assert metrics["approx_kl_k1"] == pytest.approx(-0.2)
    fractions = [value for name, value in metrics.items() if name.startswith("clip")]
    assert sum(fractions) == pytest.approx(clipped or 0.0)


def test_reference_loss_of_gspo() -> None:
    losses = GSPO(0.2, 0.28).token_losses(NEW, OLD, ADVANTAGES, MASK)
    weights = token_weights(MASK, "seq-mean-token-mean", dtype=float64)
    assert float((weights * losses).sum()) == pytest.approx(0.14377093, abs=1e-8)


def test_reference_kl() -> None:
    values = KL(0.1).token_values(torch.tensor([-1.0, -0.3]), torch.tensor([-1.4, -0.1]))
    assert values.tolist() == pytest.approx([0.0703200460, 0.0214027582], rel=1e-5)


def weight_on_grad_log_prob(objective: Any, log_r: float, advantage: float) -> float:
    """-d loss / d log_prob at log-prob -1."""
    log_prob = torch.tensor([-1.0], dtype=float64, requires_grad=True)
    known = torch.tensor([-1.0 - log_r], dtype=float64), torch.tensor([advantage], dtype=float64)
    objective.token_losses(log_prob, *known).sum().backward()
    return -float(log_prob.grad)


R = math.exp(0.5)
P = math.exp(-1.0)


@pytest.mark.parametrize(
    ("objective", "log_r", "advantage", "expected"),
    [
        (PPOClip(), 0.0, 2.0, 2.0),  # r = 1: the plain policy gradient, at any tie of the maximum
        (PPOClip(), 0.1, 2.0, 2 * math.exp(0.1)),
        (PPOClip(), 0.5, 2.0, 0.0),  # above, A > 0
        (PPOClip(), 0.5, -2.0, -2 * R),  # above, A < 0: not clipped
        (PPOClip(), -0.5, -2.0, 0.0),  # below, A < 0
        (PPOClip(), -0.5, 2.0, 2 / R),
        (PPOClip(clip_ratio_high=0.7), 0.5, 2.0, 2 * R),  # 1.65 < 1.7
        (DualClip(), 2.0, -2.0, 0.0),  # e^2 > 3
        (DualClip(), 1.0, -2.0, -2 * math.e),
        (DualClip(clip_ratio_c=8.0), 2.0, -2.0, -2 * math.exp(2.0)),
        (CISPO(), 0.5, 2.0, 2 * 1.2),
        (CISPO(), 0.5, -2.0, -2 * 1.2),
        (CISPO(), -3.0, 2.0, 2 * math.exp(-3.0)),  # no lower bound
        (CISPO(0.3), -3.0, 2.0, 2 * 0.7),
        (Reinforce(), 5.0, -2.0, -2.0),
        (PPOClip(), 30.0, -2.0, 0.0),  # outside the clamp of the log-ratio
        (Surrogate(), 2.0, 2.0, 2 * math.exp(2.0)),
        (SFT(), 5.0, -2.0, 1.0),
        (DRO(0.5), 2.0, 3.0, 3 - 0.5 * 2),
        (SAPO(), 0.0, 2.0, 2.0),  # 4 times a quarter
        (SAPO(2.0, 3.0), 0.5, 2.0, 2 * R / math.cosh(R - 1) ** 2),
        (SAPO(2.0, 3.0), 0.5, -2.0, -2 * R / math.cosh(1.5 * (R - 1)) ** 2),
        (SAPO(), 0.5, -2.0, -2 * R / math.cosh(0.525 * (R - 1)) ** 2),  # 1.05 is no float32
        # p = 1 / e = 0.368; old = p / R = 0.223 and p R = 0.607
        (DPPOTV(0.2, 0.2), 0.5, 2.0, 2 * R),  # 0.145 less than 0.2
        (DPPOTV(0.2, 0.1), 0.5, 2.0, 0.0),
        (DPPOTV(0.2, 0.1), 0.5, -2.0, -2 * R),  # the other direction
        (DPPOTV(0.2, 0.1), -0.5, -2.0, 0.0),  # 0.239 below
        (DPPOTV(0.3, 0.1), -0.5, -2.0, -2 / R),
        (DPPOTV(1.0, 1.0, 1.5), 0.5, 2.0, 2 * 1.5),
        # k = 0.223 (-0.5) + 0.777 log(0.777 / 0.632) = 0.049; below, 0.119
        (DPPOKL(0.1, 0.06), 0.5, 2.0, 2 * R),
        (DPPOKL(0.1, 0.04), 0.5, 2.0, 0.0),
        (DPPOKL(0.1, 0.04), -0.5, 2.0, 2 / R),
        (DPPOKL(0.11, 0.04), -0.5, -2.0, 0.0),
        (DPPOKL(0.13, 0.04), -0.5, -2.0, -2 / R),
        (LUFFY(), 0.0, 2.0, 2 * 0.1 * P / (P + 0.1) ** 2),
        (LUFFY("p/(p+c)", 0.5), 0.0, 2.0, 2 * 0.5 * P / (P + 0.5) ** 2),
        (LUFFY("p^c", 0.3), 0.0, 2.0, 2 * 0.3 * P**0.3),
        (LUFFY("p"), 0.0, 2.0, 2 * P),
        (LUFFY("log p"), 0.0, 2.0, 2.0),
        (LUFFY("p + log p"), 0.0, 2.0, 2 * (P + 1)),
        (LUFFY("sqrt p"), 0.0, 2.0, P**0.5),
        *((objective, 0.7, 0.0, 0.0) for objective in TOKEN_LEVEL),
        *((objective, -30.0, 0.0, 0.0) for objective in TOKEN_LEVEL),
    ],
    ids=str,
)
def test_the_weight_of_a_token(
    objective: Any, log_r: float, advantage: float, expected: float
) -> None:
    weight = weight_on_grad_log_prob(objective, log_r, advantage)
    assert weight == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "abs"])
def test_kl_by_hand(estimator: str) -> None:
    log_probs = torch.tensor([-1.0, -2.0], dtype=float64, requires_grad=True)
    values = KL(1.0, estimator).token_values(log_probs, torch.tensor([-1.5, -1.7], dtype=float64))
    x = [-0.5, 0.3]
    expected = {
        "k1": [-v for v in x],
        "abs": [abs(v) for v in x],
        "k2": [v * v / 2 for v in x],
        "k3": [math.exp(v) - v - 1 for v in x],
    }
    assert values.tolist() == pytest.approx(expected[estimator])
    assert torch.autograd.gradcheck(
        KL(1.0, estimator).token_values, (log_probs, torch.tensor([-1.5, -1.7], dtype=float64))
    )


@pytest.mark.parametrize("estimator", ["k1", "k3", "abs"])
def test_a_plus_has_the_value_of_its_estimate_and_the_gradient_of_k2(estimator: str) -> None:
    ref = torch.tensor([-1.5, -1.7, -60.0], dtype=float64)
    log_probs = torch.tensor([-1.0, -2.0, -1.0], dtype=float64, requires_grad=True)
    values = KL(1.0, estimator + "+").token_values(log_probs, ref)
    assert torch.equal(values, KL(1.0, estimator).token_values(log_probs, ref))
    (grad,) = torch.autograd.grad(values.sum(), log_probs)
    assert torch.allclose(grad, (log_probs - ref).detach())


def test_k3_is_bounded() -> None:
    log_probs = torch.tensor([-1.0, -100.0], requires_grad=True)
    values = KL(1.0).token_values(log_probs, torch.tensor([-100.0, -1.0]))
    assert values.tolist() == [10.0, 10.0]
    (grad,) = torch.autograd.grad(values.sum(), log_probs)
    assert grad.tolist() == [0.0, 0.0]


def test_a_masked_token_moves_no_gspo_ratio() -> None:
    new = NEW.clone().requires_grad_()
    poisoned = OLD.masked_fill(~MASK, math.nan)
    losses = GSPO().token_losses(new, poisoned, ADVANTAGES, MASK)
    assert losses.isfinite().all()


@pytest.mark.parametrize("objective", [*TOKEN_LEVEL, GSPO()], ids=str)
def test_an_objective_states_its_four_parts(objective: Objective) -> None:
    parts = (
        objective.stabilization_mask,
        objective.reference_denominator,
        objective.advantage,
        objective.likelihood_gradient,
    )
    assert all(isinstance(part, str) and part for part in parts)
    assert objective.token_level is not isinstance(objective, GSPO)
    with pytest.raises(dataclasses.FrozenInstanceError):
        objective.anything = 0.5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: PPOClip(-0.1), ValueError, r"^PPOClip.clip_ratio_low: expected .* at least 0"),
        (lambda: CISPO(1, math.inf), ValueError, r"^CISPO.clip_ratio_high: expected a finite"),
        (lambda: PPOClip("0.2"), TypeError, r"^PPOClip.clip_ratio_low: expected a number, got str"),
        (
            lambda: DualClip(clip_ratio_c=1.0),
            ValueError,
            r"^DualClip.clip_ratio_c: .* above 1, got",
        ),
        (lambda: GSPO(math.nan), ValueError, r"^GSPO.clip_ratio_low: expected a finite"),
        (lambda: KL(-1.0), ValueError, r"^KL.coef: expected a number of at least 0, got -1.0$"),
        (lambda: KL(1.0, "k2+"), ValueError, r"^KL.estimator: expected one of .*, got 'k2\+'$"),
        (lambda: GMPO(-1), ValueError, r"^GMPO.clip_log_ratio_low: expected a number of at least"),
        (lambda: SAPO(0.0), ValueError, r"^SAPO.tau_positive: expected a finite number above 0"),
        (lambda: DPPOTV(ratio_max=0.0), ValueError, r"^DPPOTV.ratio_max: expected a finite"),
        (lambda: DPPOKL(low=-1.0), ValueError, r"^DPPOKL.low: expected a number of at least 0"),
        (lambda: DRO(math.inf), ValueError, r"^DRO.beta: expected a finite number, got inf"),
        (lambda: KLCov(-1.0), ValueError, r"^KLCov.coef: expected a number of at least 0"),
        (lambda: LUFFY("1/p"), ValueError, r"^LUFFY.shaping: expected one of .*, got '1/p'"),
        (lambda: LUFFY("p", 0.1), ValueError, r"^LUFFY.c: expected None, as 'p' does not use it"),
        (lambda: LUFFY("p^c"), ValueError, r"^LUFFY.c: expected a number for 'p\^c', got None"),
        (lambda: LUFFY(c=0.0), ValueError, r"^LUFFY.c: expected a finite number above 0, got 0.0"),
        (
            lambda: RolloutImportance("step"),
            ValueError,
            r"^RolloutImportance.level: expected 'token' or 'sequence', got 'step'",
        ),
        (lambda: RolloutImportance(mode="clip"), ValueError, r"^RolloutImportance.mode: expected"),
        (lambda: RolloutImportance(max=0.0), ValueError, r"^RolloutImportance.max: expected a fin"),
        (
            lambda: RolloutImportance(max=1.0, min=1.5),
            ValueError,
            r"^RolloutImportance.min: expected at most max, 1.0, got 1.5",
        ),
        (lambda: KL(1.0, "k4"), ValueError, r"^KL.estimator: expected one of 'k1', .*got 'k4'$"),
    ],
)
def test_bad_arguments(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(
    ("importance", "expected"),
    [
        (RolloutImportance(max=2.0), [2.0, 2.0, 0.125, 1.0]),
        (RolloutImportance(max=2.0, min=0.5), [2.0, 2.0, 0.5, 1.0]),
        (RolloutImportance(mode="mask", max=2.0, min=0.5), [0.0, 2.0, 0.0, 1.0]),
        (RolloutImportance("sequence", max=5.0), [1.0, 1.0, 1.0, 1.0]),
        (RolloutImportance("sequence", "mask", max=0.9), [0.0, 0.0, 0.0, 0.0]),
    ],
    ids=str,
)
def test_importance_by_hand(importance: RolloutImportance, expected: list[float]) -> None:
    ratios = torch.tensor([[4.0, 2.0, 0.125, 1.0, 100.0]], dtype=float64)  # their product is 100
    mask = torch.tensor([[True, True, True, True, False]])
    v, told = importance.weights(ratios.log(), torch.zeros(1, 5, dtype=float64), mask)
    assert v[0, :4].tolist() == pytest.approx(expected)
    changed = (v != told["rollout_ratio"])[mask].double().mean()
    assert told["rollout_clip_fraction"][mask].mean() == changed
    assert told["rollout_kl_k1"][mask].sum().item() == pytest.approx(0.0, abs=1e-15)
