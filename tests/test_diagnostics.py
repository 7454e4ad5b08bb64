"""Entropy changes against a bandit that takes the step; the law's fit against planted ones."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from logpi.diagnostics import (
    EntropyLaw,
    entropy_change,
    fit_entropy_law,
    plot_entropy_law,
    sampled_entropy_change,
)

float64 = torch.float64


def entropy_of(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    return -(p * log_p.where(p > 0, 0.0)).sum(-1)


def stepped(logits: Tensor, rewards: Tensor, rate: float, natural: bool) -> Tensor:
    """The bandit's logits after one step up its expected reward."""
    leaf = logits.clone().requires_grad_()
    p = leaf.softmax(-1)
    (gradient,) = torch.autograd.grad((p * rewards).sum(), leaf)
    if natural:  # the Fisher matrix is diag(p) - p p^T: its inverse on the gradient is A, centred
        gradient = rewards - (p * rewards).sum(-1, keepdim=True).detach()
    return logits + rate * gradient


def bandits() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20, 7, generator=random, dtype=float64)
    return logits, torch.randn(20, 7, generator=random, dtype=float64) + 3.0


@pytest.mark.parametrize("natural", [False, True])
def test_the_change_of_a_bandits_entropy(natural: bool) -> None:
    logits, rewards = bandits()
    errors = []
    for rate in (1e-2, 1e-3, 1e-4):
        change = entropy_of(stepped(logits, rewards, rate, natural)) - entropy_of(logits)
        told = entropy_change(logits.log_softmax(-1), rewards, rate, natural=natural)
        errors.append((change - told).abs().max().item())
        assert errors[-1] < 0.05 * change.abs().max().item()
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.2)  # what is left out is eta^2
    assert errors[1] / errors[2] == pytest.approx(100, rel=0.2)


def test_what_is_likely_and_good_costs_entropy() -> None:
    log_p = torch.tensor([0.7, 0.2, 0.1]).log()
    for natural in (False, True):
        falls = entropy_change(log_p, torch.tensor([1.0, 0.0, 0.0]), 0.1, natural=natural)
        rises = entropy_change(log_p, torch.tensor([0.0, 0.0, 1.0]), 0.1, natural=natural)
        assert falls < 0 < rises
        flat = entropy_change(log_p, torch.full((3,), 5.0), 0.1, natural=natural)
        assert flat.item() == pytest.approx(0.0, abs=1e-7)


def test_an_impossible_action_changes_nothing() -> None:
    logits = torch.tensor([0.3, -torch.inf, -0.2], dtype=float64)
    rewards = torch.tensor([1.0, torch.nan, 0.0], dtype=float64)
    for natural in (False, True):
        told = entropy_change(logits.log_softmax(-1), rewards, 0.1, natural=natural)
        alone = logits[[0, 2]].log_softmax(-1)
        assert told == entropy_change(alone, rewards[[0, 2]], 0.1, natural=natural)


@pytest.mark.parametrize("natural", [False, True])
def test_drawn_tokens_tell_the_same(natural: bool) -> None:
    counts = torch.tensor([50, 30, 15, 5])  # drawn as often as they are likely
    log_p = (counts / counts.sum().double()).log()
    rewards = torch.tensor([1.0, 0.5, 2.0, -3.0], dtype=float64)
    draws = torch.arange(4).repeat_interleave(counts)[torch.randperm(100)]
    padded = [torch.cat([x[draws], torch.full((9,), torch.nan)]) for x in (log_p, rewards)]
    mask = torch.arange(109) < 100
    told = sampled_entropy_change(*padded, mask, 0.1, natural=natural)
    exact = entropy_change(log_p, rewards, 0.1, natural=natural)
    assert told.item() == pytest.approx(exact.item(), rel=1e-12)
    for few in (torch.arange(109) == 5, torch.zeros(109)):
        assert sampled_entropy_change(*padded, few, 0.1, natural=natural) == 0


# ---- the law ------------------------------------------------------------------------------------

A, B = 0.08, 0.72
ENTROPY = torch.linspace(1.2, 0.05, 24, dtype=float64)


def planted(seed: int, noise: float) -> EntropyLaw:
    random = torch.Generator().manual_seed(seed)
    errors = noise * torch.randn(len(ENTROPY), generator=random, dtype=float64)
    return fit_entropy_law(ENTROPY, -A * ENTROPY.exp() + B + errors, confidence=0.9)


def test_a_planted_law_is_found() -> None:
    pytest.importorskip("scipy")
    law = planted(0, 0.0)
    assert (law.a, law.b, law.ceiling) == pytest.approx((A, B, B - A), rel=1e-12)
    assert law.r_squared == pytest.approx(1.0)
    assert law.autocorrelation == 0.0
    assert law.predict(0.0) == pytest.approx(law.ceiling, rel=1e-12)
    assert max(map(abs, law.residuals)) < 1e-14


def test_the_fit_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    law = planted(1, 0.01)
    theirs = stats.linregress(ENTROPY.exp().tolist(), list(law.rewards))
    t = stats.t.ppf(0.95, len(ENTROPY) - 2)
    assert (law.a, law.b) == pytest.approx((-theirs.slope, theirs.intercept), rel=1e-10)
    assert law.r_squared == pytest.approx(theirs.rvalue**2, rel=1e-10)
    half = [(high - low) / 2 for low, high in (law.a_interval, law.b_interval)]
    assert half == pytest.approx([t * theirs.stderr, t * theirs.intercept_stderr], rel=1e-10)


def test_intervals_cover_as_often_as_they_say() -> None:
    pytest.importorskip("scipy")
    laws = [planted(seed, 0.01) for seed in range(400)]
    for name, true in (("a", A), ("b", B), ("ceiling", B - A)):
        intervals = [getattr(law, f"{name}_interval") for law in laws]
        share = sum(low <= true <= high for low, high in intervals) / len(laws)
        assert share == pytest.approx(0.9, abs=3 * math.sqrt(0.09 / len(laws))), name


def test_residuals_that_follow_each_other_are_told() -> None:
    pytest.importorskip("scipy")
    wave = 0.01 * torch.sin(torch.arange(24, dtype=float64) / 3)
    law = fit_entropy_law(ENTROPY, -A * ENTROPY.exp() + B + wave)
    assert law.autocorrelation > 0.7
    assert abs(planted(2, 0.01).autocorrelation) < 0.5


def test_a_plot_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    path = plot_entropy_law(planted(3, 0.01), tmp_path / "law.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(ValueError, match=r"^path: expected one that ends with .png, got 'law.pdf'"):
        plot_entropy_law(planted(3, 0.01), "law.pdf")


def test_a_law_is_frozen() -> None:
    pytest.importorskip("scipy")
    with pytest.raises(dataclasses.FrozenInstanceError):
        planted(0, 0.0).a = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("entropy", "rewards", "options", "error", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0], {}, ValueError, r"^entropy: expected at least 3 points, got 2$"),
        ([1.0, 2.0, 3.0], [1.0, 2.0], {}, ValueError, r"^rewards: expected shape \(3,\), got"),
        ([1.0] * 3, [1.0] * 3, {}, ValueError, r"^entropy: expected points at different ones"),
        ([1.0, -0.1, 2.0], [1.0] * 3, {}, ValueError, r"^entropy: expected nats .* got -0.1$"),
        ([1.0, 2.0, 800.0], [1.0] * 3, {}, ValueError, r"^entropy: .* e\^H is finite, got 800$"),
        ([1.0, 2.0, 3.0], [0.0, math.nan, 0.0], {}, ValueError, r"^rewards: .* nan at point 1$"),
        ([[1.0, 2.0]], [1.0], {}, ValueError, r"^entropy: expected one number a point, got"),
        ("high", [1.0], {}, TypeError, r"^entropy: expected numbers, got str$"),
        ([1.0, 2.0, 3.0], [1.0] * 3, {"confidence": 95}, ValueError, r"^confidence: .* got 95$"),
    ],
)
def test_errors_of_the_fit_are_named(
    entropy: Any, rewards: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    pytest.importorskip("scipy")
    with pytest.raises(error, match=message):
        fit_entropy_law(entropy, rewards, **options)


X = torch.zeros(3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X, X[:2], 0.1), ValueError, r"^advantages: expected shape \(3,\), got \(2,\)$"),
        ((X.int(), X, 0.1), TypeError, r"^log_probs: expected float32 or .*, got int32$"),
        ((X, X, 0.0), ValueError, r"^learning_rate: expected a finite number above 0, got 0.0$"),
    ],
)
def test_errors_of_the_change_are_named(
    arguments: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        entropy_change(*arguments)
    log_probs, advantages, rate = arguments
    with pytest.raises(error, match=message):
        sampled_entropy_change(log_probs, advantages, torch.ones(3), rate)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ImportError, match=r"needs scipy: pip install 'logpi\[diagnostics\]'$"):
        fit_entropy_law([1.0, 2.0, 3.0], [1.0, 0.5, 0.2])
