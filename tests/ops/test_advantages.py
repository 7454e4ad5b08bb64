"""Advantages against numbers that a trainer's own functions gave, and against loops over groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from logpi import advantages, token_log_probs
from logpi.testing import bits

float64 = torch.float64
# Group 0: four answers; group 1: one.
REWARDS = torch.tensor([1.0, 0.0, 0.0, 0.5, 1.0], dtype=float64)
IDS = torch.tensor([0, 0, 0, 0, 1])
MASK = torch.arange(4) < torch.tensor([4, 3, 2, 4, 1])[:, None]


def normalized(*args: Tensor, **options: Any) -> Tensor:
    return advantages.group_normalized(*args[:2], **options)


def centered(*args: Tensor, **options: Any) -> Tensor:
    return advantages.group_centered(*args[:2], **options)


def rloo(*args: Tensor, **options: Any) -> Tensor:
    return advantages.rloo(*args[:2], **options)


def gpg(*args: Tensor, **options: Any) -> Tensor:
    return advantages.gpg(*args[:2], **options)


def pass_at_k(*args: Tensor) -> Tensor:
    return advantages.pass_at_k(*args[:2])


def gdpo(rewards: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return advantages.gdpo(torch.stack([rewards, rewards.square()], -1), ids, mask)


BASELINE = advantages.reinforce_plus_plus_baseline
# takes (rewards, group_ids, loss_mask)
BY_GROUP = [normalized, centered, rloo, gpg, pass_at_k, advantages.opo]
BY_BATCH = [BASELINE, gdpo]
EVERY = [*BY_GROUP, *BY_BATCH]
named = partial(pytest.mark.parametrize, ids=lambda f: getattr(f, "__name__", None))


# Rewards on the last valid token; the first token's advantage.
@named(
    ("estimator", "expected"),
    [
        (normalized, [1.30557969, -0.78334782, -0.78334782, 0.26111594, 0.999999]),
        (centered, [0.625, -0.375, -0.375, 0.125, 1.0]),
        (rloo, [0.83333333, -0.5, -0.5, 0.16666667, 1.0]),
        (partial(rloo, singletons="zero"), [0.83333333, -0.5, -0.5, 0.16666667, 0.0]),
        (advantages.opo, [0.53846154, -0.46153846, -0.46153846, 0.03846154, 1.0]),
        (BASELINE, [0.98415917, -1.09557341, -1.09557341, -0.05570712, 1.76405888]),
        (gpg, [1.04166667, -0.625, -0.625, 0.20833333, 1.66666667]),
    ],
)
def test_reference_values(estimator: Callable[..., Tensor], expected: list[float]) -> None:
    ours = estimator(REWARDS, IDS, MASK)
    assert ours.dtype == float64
    assert ours.tolist() == pytest.approx(expected, abs=1e-7)


def test_reference_values_of_reinforce_plus_plus() -> None:
    ours = advantages.reinforce_plus_plus(REWARDS, MASK)
    expected = [1.1401754, -1.1401754, -1.1401754, 0.0, 1.1401754]
    assert ours[:, 0].tolist() == pytest.approx(expected, abs=1e-7)
    assert torch.equal(ours[~MASK], torch.zeros(6, dtype=float64))


# ---- loops over groups --------------------------------------------------------------------------


def looped(rewards: Tensor, ids: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    out = torch.zeros_like(rewards)
    for one in ids.unique():
        out[ids == one] = of(rewards[ids == one])
    return out


def batch(seed: int, size: int = 60, prompts: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    rewards = torch.randn(size, generator=random, dtype=float64)
    ids = torch.randint(prompts, (size,), generator=random)
    names = torch.randperm(10**6, generator=random)[:prompts] - 5 * 10**5
    mask = torch.rand(size, 7, generator=random) < 0.6
    return rewards, names[ids], mask


def pass_at_k_of(r: Tensor) -> Tensor:
    out = torch.zeros_like(r)
    if len(r) > 1:
        first, second = r.topk(2).values
        out[r.argmax()] = (first - second) / (r.std() + 1e-6)
    return out


LOOPS = {
    normalized: lambda r: (r - r.mean()) / (r.std() + 1e-6) if len(r) > 1 else r / (1 + 1e-6),
    centered: lambda r: r - r.mean() if len(r) > 1 else r,
    rloo: lambda r: r - (r.sum() - r) / (len(r) - 1) if len(r) > 1 else r,
    pass_at_k: pass_at_k_of,
}


@named("estimator", LOOPS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_loop_over_groups(estimator: Callable[..., Tensor], seed: int) -> None:
    rewards, ids, mask = batch(seed, prompts=30)  # groups of one among them
    expected = looped(rewards, ids, LOOPS[estimator])
    torch.testing.assert_close(estimator(rewards, ids, mask), expected, rtol=1e-12, atol=1e-12)


def whitened_tokens(values: Tensor, mask: Tensor) -> Tensor:
    every = values[:, None].expand(mask.shape)[mask]
    return ((values - every.mean()) / (every.var() + 1e-8).sqrt()).where(mask.any(-1), 0.0)


def test_whitening_counts_tokens() -> None:
    rewards, ids, mask = batch(3)
    mask[5] = False
    expected = whitened_tokens(looped(rewards, ids, LOOPS[centered]), mask)
    torch.testing.assert_close(BASELINE(rewards, ids, mask), expected)
    two = [looped(x, ids, LOOPS[normalized]) for x in (rewards, rewards.square())]
    pair = torch.stack([rewards, rewards.square()], -1)
    for weights in (None, [0.5, -2.0]):
        first, second = weights or (1.0, 1.0)
        expected = whitened_tokens(first * two[0] + second * two[1], mask)
        ours = advantages.gdpo(pair, ids, mask, weights=weights)
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("live", [0, 1])
def test_none_or_one_token_to_whiten_over(live: int) -> None:
    mask = torch.zeros(5, 4)
    mask[2, 1] = live
    for ours in (
        *(estimator(REWARDS, IDS, mask) for estimator in BY_BATCH),
        advantages.reinforce_plus_plus(REWARDS, mask),
    ):
        assert torch.equal(ours, torch.zeros_like(ours))
    assert advantages.opo(REWARDS, IDS, mask).isfinite().all()


def test_a_discounted_return() -> None:
    rewards = torch.tensor([[0.0, 9.0, 0.0, 1.0], [2.0, 0.0, 0.0, 9.0]], dtype=float64)
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0]])
    returns = torch.tensor([0.25, 0.5, 1.0, 2.0, 0.0, 0.0], dtype=float64)
    expected = (returns - returns.mean()) / (returns.var() + 1e-8).sqrt()
    ours = advantages.reinforce_plus_plus(rewards, mask, gamma=0.5)
    torch.testing.assert_close(ours[mask.bool()], expected)


def test_remax() -> None:
    rewards, greedy = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.25])
    assert advantages.remax(rewards, greedy).tolist() == [0.5, -0.25]
    tokens = torch.tensor([[1.0, math.nan, 2.0], [0.5, 0.0, math.inf]])
    ours = advantages.remax(tokens, greedy, torch.tensor([[1, 0, 1], [1, 1, 0]]))
    assert ours.tolist() == [[2.5, 0.0, 1.5], [0.25, -0.25, 0.0]]


# ---- the baseline of a token --------------------------------------------------------------------


def token_baselines(
    rewards: Tensor, ids: Tensor, p: Tensor, square: Tensor, mask: Tensor, tail: bool
) -> Tensor:
    out = torch.zeros_like(p)
    for b, t in mask.nonzero().tolist():
        total = weighted = alive = 0.0
        for other in (ids == ids[b]).nonzero().flatten().tolist():
            if mask[other, t]:
                norms = (1 - 2 * p + square)[other]
                path = float(norms[: t + 1][mask[other, : t + 1]].sum())
                to_go = float(rewards[other, t:][mask[other, t:]].sum())
                total, weighted, alive = total + path, weighted + to_go * path, alive + 1
        lonely = int((ids == ids[b]).sum()) == 1 or (tail and alive == 1)
        to_go = float(rewards[b, t:][mask[b, t:]].sum())
        out[b, t] = to_go - (0.0 if lonely else weighted / total)
    return out


@pytest.mark.parametrize("zero_tail", [False, True])
def test_optimal_token_baseline(zero_tail: bool) -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, 11, generator=random, dtype=float64)
    tokens = torch.randint(11, (6, 5), generator=random)
    rewards = torch.randn(6, 5, generator=random, dtype=float64)
    ids = torch.tensor([7, -1, 7, 3, -1, 7])
    mask = torch.arange(5) < torch.tensor([5, 3, 3, 4, 0, 2])[:, None]
    mask[0, 1] = False
    out = token_log_probs(logits, tokens, return_collision=True)
    estimate = partial(advantages.optimal_token_baseline, zero_tail=zero_tail)
    ours = estimate(rewards, ids, out.log_probs, out.collision, mask)
    expected = token_baselines(rewards, ids, out.log_probs.exp(), out.collision, mask, zero_tail)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)

    junk = [x.masked_fill(~mask, math.nan) for x in (rewards, out.log_probs, out.collision)]
    assert torch.equal(bits(estimate(junk[0], ids, *junk[1:], mask)), bits(ours))
    weights = torch.full_like(rewards, 3.0)  # the same for all: it cancels
    weighed = estimate(rewards, ids, out.log_probs, out.collision, mask, importance=weights)
    torch.testing.assert_close(weighed, ours)


def test_certain_tokens_have_a_baseline_of_0() -> None:
    nothing = torch.zeros(2, 3)
    ones = torch.ones(2, 3) - 1e-8  # of float32: the norm's rounding may be below 0
    ours = advantages.optimal_token_baseline(
        torch.tensor([1.0, 0.0]), torch.zeros(2).long(), nothing, ones, torch.ones(2, 3)
    )
    assert ours.tolist() == [[1.0] * 3, [0.0] * 3]


# ---- what all have in common --------------------------------------------------------------------


@named("estimator", EVERY)
@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_order_and_names_do_not_matter(
    estimator: Callable[..., Tensor], seed: int, size: int
) -> None:
    rewards, ids, mask = batch(seed, size)
    ours = estimator(rewards, ids, mask)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    shuffled = estimator(rewards[order], -3 * ids[order] + 5, mask[order])
    if estimator in (*BY_BATCH, advantages.opo):  # lengths, and tokens of the batch, are not sorted
        torch.testing.assert_close(shuffled, ours[order], rtol=1e-12, atol=1e-12)
    else:
        assert torch.equal(bits(shuffled), bits(ours[order]))


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([normalized, centered, rloo]))
def test_a_groups_advantages_add_up_to_0(
    seed: int, size: int, estimator: Callable[..., Tensor]
) -> None:
    rewards, ids, mask = batch(seed, size)
    ours = estimator(rewards, ids, mask, singletons="zero")
    for one in ids.unique():
        assert abs(float(ours[ids == one].sum())) < 1e-12 * size
    moved = estimator(rewards + 3.0, ids, mask, singletons="zero")
    torch.testing.assert_close(moved, ours, rtol=1e-9, atol=1e-9)


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(3, 40))
def test_whitened_tokens_have_mean_0_and_variance_1(seed: int, size: int) -> None:
    rewards, ids, mask = batch(seed, size)
    mask[:2] = True
    every = BASELINE(rewards, ids, mask)[:, None].expand(mask.shape)[mask]
    assert float(every.mean()) == pytest.approx(0.0, abs=1e-9)
    assert float(every.var()) == pytest.approx(1.0, abs=1e-5)


@named("estimator", BY_GROUP)
def test_nan_stays_in_its_group(estimator: Callable[..., Tensor]) -> None:
    rewards, ids, mask = batch(0)
    mask[:, 0] = True
    poisoned = rewards.clone()
    poisoned[4] = math.nan
    ours, clean = estimator(poisoned, ids, mask), estimator(rewards, ids, mask)
    others = ids != ids[4]
    assert torch.equal(bits(ours[others]), bits(clean[others]))
    assert ours[4].isnan()


@named("estimator", EVERY)
def test_float32_is_rounded_once(estimator: Callable[..., Tensor]) -> None:
    rewards, ids, mask = batch(1)
    rewards = (rewards + 1000.0).float()
    ours, truth = estimator(rewards, ids, mask), estimator(rewards.double(), ids, mask)
    assert ours.dtype == torch.float32
    if estimator is not gdpo:  # which squares what it is given
        assert torch.equal(ours, truth.float())
    for narrow in (torch.bfloat16, torch.float16):
        assert estimator(rewards.to(narrow), ids, mask).dtype == torch.float32


@named("estimator", EVERY)
def test_equal_rewards_are_worth_nothing(estimator: Callable[..., Tensor]) -> None:
    ids = torch.tensor([5, 5, 2, 2, 2])
    ours = estimator(torch.full((5,), 0.1), ids, torch.ones(5, 2))
    assert torch.equal(ours, torch.zeros(5))


@named("estimator", EVERY)
def test_nobody(estimator: Callable[..., Tensor]) -> None:
    nothing = torch.zeros(0)
    assert estimator(nothing, nothing.long(), torch.ones(0, 3)).shape == (0,)


def test_ties_for_the_first_place_are_worth_nothing() -> None:
    ids = torch.zeros(3).long()
    assert advantages.pass_at_k(torch.tensor([1.0, 1.0, 0.0]), ids).tolist() == [0.0] * 3
    ours = advantages.pass_at_k(torch.tensor([0.0, 1.0, 0.25]), ids)
    assert (ours != 0).tolist() == [False, True, False]


def test_no_gradient() -> None:
    rewards = REWARDS.clone().requires_grad_()
    for estimator in EVERY:
        assert not estimator(rewards, IDS, MASK).requires_grad


@named("estimator", [*EVERY, advantages.reinforce_plus_plus])
def test_one_graph_with_the_bits_of_eager(estimator: Callable[..., Tensor]) -> None:
    torch._dynamo.reset()
    arguments = batch(2)
    if estimator is advantages.reinforce_plus_plus:
        arguments = arguments[::2]
    compiled = torch.compile(estimator, backend="aot_eager", fullgraph=True)
    assert torch.equal(bits(compiled(*arguments)), bits(estimator(*arguments)))
    torch._dynamo.reset()


R, I = torch.zeros(3), torch.zeros(3).long()  # noqa: E741
M, TOKENS = torch.ones(3, 2), torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: normalized(M, I), ValueError, r"^rewards: expected shape \[B\], got \(3, 2\)$"),
        (lambda: normalized(I, I), TypeError, r"^rewards: expected float32 or .*, got int64$"),
        (lambda: normalized(R, R), TypeError, r"^group_ids: expected int64 or int32, got float32"),
        (lambda: normalized(R, I[:2]), ValueError, r"^group_ids: expected shape \(3,\), got \(2,"),
        (lambda: normalized(R, I.to("meta")), ValueError, r"^group_ids: expected a tensor on cpu"),
        (lambda: normalized(R, I, eps=-1.0), ValueError, r"^eps: expected a number of at least 0"),
        (lambda: rloo(R, I, singletons="one"), ValueError, r"^singletons: .* got 'one'$"),
        (lambda: advantages.opo(R, I, M[:2]), ValueError, r"^loss_mask: expected shape \(3, 2\)"),
        (lambda: advantages.opo(R, I, R), ValueError, r"^loss_mask: expected shape \[B, T\]"),
        (lambda: advantages.gdpo(R, I, M), ValueError, r"^rewards: expected shape \[B, K\]"),
        (
            lambda: advantages.gdpo(M, I, M, weights=[1.0]),
            ValueError,
            r"^weights: expected 2, one a reward, got 1$",
        ),
        (lambda: advantages.remax(R, R, M), ValueError, r"^loss_mask: expected one with rewards"),
        (lambda: advantages.remax(M, R), ValueError, r"^loss_mask: .*, got none with rewards"),
        (lambda: advantages.remax(R, M), ValueError, r"^greedy_rewards: expected shape \(3,\)"),
        (
            lambda: advantages.reinforce_plus_plus(R, M, gamma=2.0),
            ValueError,
            r"^gamma: expected a number in \[0, 1\], got 2.0$",
        ),
        (
            lambda: advantages.optimal_token_baseline(R, I, TOKENS, R, M),
            ValueError,
            r"^collision: expected shape \(3, 2\), got \(3,\)$",
        ),
    ],
)
def test_errors_name_the_argument(
    call: Callable[[], Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
