"""policy_loss in float64 against numbers that the papers' and trainers' own functions gave."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from logpi import policy_loss
from logpi.objectives import (
    CISPO,
    DPPOTV,
    GMPO,
    GPG,
    GSPO,
    HPT,
    SFT,
    ClipCov,
    DualClip,
    KLCov,
    Objective,
    Surrogate,
)

float64 = torch.float64
OLD = torch.tensor([[-0.5, -1.0, -2.0, -0.1], [-0.7, -3.0, -0.2, -0.4]], dtype=float64)
NEW = torch.tensor([[-0.4, -1.3, -1.2, -0.1], [-0.9, -2.0, -0.2, -9.0]], dtype=float64)
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()
ADVANTAGES = torch.tensor([2.0, -2.0], dtype=float64)
MEAN = {"aggregation": "seq-mean-token-mean"}
AT_1e_7 = {"rel": 0, "abs": 1e-7}


def top_covariances(count: int) -> Tensor:
    """The selection of KL-Cov, as its equation reads: the largest of (A - mean A)(l - mean l)."""
    advantages = ADVANTAGES[:, None].expand(2, 4)
    centred = [x - x[MASK].mean() for x in (advantages, NEW)]
    covariance = (centred[0] * centred[1]).masked_fill(~MASK, -torch.inf)
    chosen = torch.zeros(8, dtype=torch.bool)
    chosen[covariance.flatten().topk(count).indices] = True
    return chosen.view(2, 4)


def between(low: float, high: float, excluded: Tensor) -> Tensor:
    """The candidates of Clip-Cov."""
    advantages = ADVANTAGES[:, None].expand(2, 4)
    centred = [x - x[MASK].mean() for x in (advantages, NEW)]
    covariance = centred[0] * centred[1]
    return (covariance > low) & (covariance < high) & MASK & ~excluded


# The functions ran at clip 0.2 / 0.28 and c = 3; fractions of the clipped among the seven tokens.
@pytest.mark.parametrize(
    ("objective", "options", "loss", "fraction"),
    [
        (DualClip(0.2, 0.28, 3.0), {}, 0.11743527, 1 / 7),
        (GSPO(0.2, 0.28), MEAN, 0.14377093, 0),
        (CISPO(0.2, 0.28), {}, -0.10822552, 3 / 7),
        (GPG(), {}, -0.02857143, 0),
        (DPPOTV(0.2, 0.28, 3.0), {}, -0.62789719, None),
        (GMPO(0.2, 0.28), MEAN, 0.28540383, 2 / 7),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Objective) else "",
)
def test_losses(objective: Objective, options: dict[str, Any], loss: float, fraction: Any) -> None:
    out = policy_loss(NEW, OLD, ADVANTAGES, MASK, objective=objective, **options)
    assert out.loss.item() == pytest.approx(loss, rel=0, abs=1e-8 if loss else 0)
    assert out.metrics["approx_kl_k1"].item() == pytest.approx(-0.2, **AT_1e_7)
    if fraction is not None:
        clipped = sum(v.item() for k, v in out.metrics.items() if "fraction" in k)
        assert clipped == pytest.approx(fraction, **AT_1e_7)


KL_COV = (
    [-0.31576312, -0.21166235, -0.63586884, -0.28571429],
    [0.23392307, 0.91950909, 0.28571429, 0.0],
)
CLIP_COV = (
    [-0.31576312, -0.21166235, 0.0, 0.0],
    [0.23392307, 0.0, 0.28571429, 0.0],
)


@pytest.mark.parametrize(
    ("count", "aggregation", "loss", "gradient"),
    [
        (2, "token-mean", -0.0098621388, KL_COV),
        (2, "seq-mean-token-sum", -0.0345174857, None),
        (1, "token-mean", -0.0098621388, KL_COV),
    ],
)
def test_kl_cov(count: int, aggregation: str, loss: float, gradient: Any) -> None:
    new = NEW.clone().requires_grad_()
    out = policy_loss(
        new, OLD, ADVANTAGES, MASK, objective=KLCov(), selection=top_covariances(count),
        aggregation=aggregation,
    )  # fmt: skip
    assert out.loss.item() == pytest.approx(loss, **AT_1e_7)
    assert out.metrics["selected_fraction"].item() == pytest.approx(count / 7)
    if gradient is not None:
        (grad,) = torch.autograd.grad(out.loss, new)
        assert torch.allclose(grad, torch.tensor(gradient, dtype=float64), rtol=0, atol=1e-8)


def test_clip_cov() -> None:
    objective = ClipCov(0.2, 0.2)
    new = NEW.clone().requires_grad_()
    excluded = objective.clipped(new, OLD, ADVANTAGES)
    selection = between(1, 5, excluded)
    assert selection.nonzero().tolist() == [[0, 3], [1, 1]]
    assert (excluded & MASK).nonzero().tolist() == [[0, 2]]
    out = policy_loss(new, OLD, ADVANTAGES, MASK, objective=objective, selection=selection)
    assert out.loss.item() == pytest.approx(-0.3506452526, **AT_1e_7)
    (grad,) = torch.autograd.grad(out.loss, new)
    assert torch.allclose(grad, torch.tensor(CLIP_COV, dtype=float64), rtol=0, atol=1e-8)


def test_dropped_tokens_stay_in_the_denominator() -> None:
    none, every = torch.zeros_like(MASK), torch.ones_like(MASK)
    options = {"objective": ClipCov(), "num_tokens": 7}
    half = MASK & (torch.arange(4) < 2)
    whole = policy_loss(NEW, OLD, ADVANTAGES, MASK, selection=none, **options).loss
    rest = policy_loss(NEW, OLD, ADVANTAGES, MASK & ~half, selection=none, **options).loss
    dropped = policy_loss(NEW, OLD, ADVANTAGES, MASK, selection=half, **options).loss
    assert dropped.item() == pytest.approx(rest.item(), rel=1e-12)
    assert whole.item() != pytest.approx(rest.item(), rel=0.01)
    assert policy_loss(NEW, OLD, ADVANTAGES, MASK, selection=every, **options).loss == 0


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token-mean", 3.0),
        ("token-sum", 21.0),
        ("seq-mean-token-sum", 10.5),
        ("seq-mean-token-sum-norm", 2.625),
        ("seq-mean-token-mean", 3.25),
    ],
)
def test_aggregations_of_0_to_7(aggregation: str, expected: float) -> None:
    """Of -log p alone, with log p = -0 .. -7."""
    values = -torch.arange(8.0, dtype=float64).view(2, 4)
    loss = policy_loss(values, OLD, ADVANTAGES, MASK, objective=SFT(), aggregation=aggregation).loss
    assert loss.item() == pytest.approx(expected, **AT_1e_7)


def test_hpt_for_rollouts_alone() -> None:
    """Their sum over the padded length, divided by no number of sequences; no clip."""
    out = policy_loss(
        NEW, OLD, ADVANTAGES, MASK, objective=Surrogate(), aggregation="seq-mean-token-sum-norm",
        num_sequences=1,
    )  # fmt: skip
    assert out.loss.item() == pytest.approx(-0.26725874, abs=1e-8)
    mixed = HPT().loss(
        NEW, OLD, ADVANTAGES, MASK, num_solved=torch.tensor([3, 3]),
        is_demonstration=torch.tensor([False, False]), num_sequences=1,
    )  # fmt: skip
    assert mixed.loss.item() == pytest.approx(-0.26725874, abs=1e-8)
