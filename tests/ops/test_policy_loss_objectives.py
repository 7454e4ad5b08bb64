"""Objectives against numbers that trainers' own functions gave, and against derivatives by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from logpi.core.masked import token_weights
from logpi.objectives import CISPO, GSPO, KL, DualClip, Objective, PPOClip, Reinforce

float64 = torch.float64
OLD = torch.tensor([[-0.5, -1.0, -2.0, -0.1], [-0.7, -3.0, -0.2, -0.4]], dtype=float64)
NEW = torch.tensor([[-0.4, -1.3, -1.2, -0.1], [-0.9, -2.0, -0.2, -9.0]], dtype=float64)
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()
ADVANTAGES = torch.tensor([[2.0], [-2.0]], dtype=float64).expand(2, 4)
TOKEN_LEVEL = (PPOClip(), DualClip(), CISPO(), Reinforce())


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
        objective.clip_ratio_low = 0.5  # type: ignore[attr-defined]


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
        (lambda: KL(1.0, "k4"), ValueError, r"^KL.estimator: expected one of 'k1', .*got 'k4'$"),
    ],
)
def test_bad_arguments(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()
