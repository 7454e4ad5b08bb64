"""verl's registered advantage estimators beside ours, in float64, with groups of one and of many.

tests/verl-requirements.txt says what to install.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from logpi import advantages as ours

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]

float64 = torch.float64
B, T = 13, 19
GAMMA, LAMBDA = 0.97, 0.9


class Batch:
    """Groups 3, 0 and 7 out of order, one of them a single sequence; lengths of 1 to T."""

    def __init__(self, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.group_ids = torch.tensor([3, 0, 3, 3, 0, 7, 0, 3, 0, 0, 3, 0, 3])
        self.lengths = torch.randint(1, T + 1, (B,), generator=g)
        self.lengths[0] = T
        self.mask = torch.arange(T) < self.lengths[:, None]
        self.rewards = torch.randn(B, generator=g, dtype=float64)
        self.rewards[1:3] = 0.0
        last = self.lengths[:, None] - 1
        self.token_rewards = torch.zeros(B, T, dtype=float64)
        self.token_rewards.scatter_(1, last, self.rewards[:, None])
        self.dense_rewards = torch.randn(B, T, generator=g, dtype=float64) * self.mask
        self.values = torch.randn(B, T, generator=g, dtype=float64)
        self.log_probs = -3 * torch.rand(B, T, generator=g, dtype=float64)
        p = self.log_probs.exp()
        self.collision = p.square() + (1 - p).square() * torch.rand(B, T, generator=g).double()
        self.importance = 0.5 + torch.rand(B, T, generator=g, dtype=float64)
        self.greedy = torch.randn(B, generator=g, dtype=float64)

    def theirs(self, verl: Any, name: str, **options: Any) -> Tensor:
        """Outcome estimators take their reward at the last token, and groups as numpy objects."""
        options = {
            "token_level_rewards": self.token_rewards.clone(),  # some write over it
            "response_mask": self.mask.to(float64),
            "index": np.array([f"g{i}" for i in self.group_ids.tolist()], dtype=object),
        } | options
        values, _ = verl.get_adv_estimator_fn(name)(**options)
        return values


@pytest.fixture(params=range(3))
def batch(request: pytest.FixtureRequest) -> Batch:
    return Batch(request.param)


def same(found: Tensor, theirs: Tensor, mask: Tensor) -> None:
    """To the 1e-8 and 1e-6 in its denominators, which ours has too where it is part of a method."""
    found = found[:, None].expand_as(theirs) if found.dim() == 1 else found
    torch.testing.assert_close(found * mask, theirs * mask, rtol=1e-6, atol=1e-7)


OUTCOME: dict[str, Callable[[Batch], Tensor]] = {
    "grpo": lambda b: ours.group_normalized(b.rewards, b.group_ids),
    "grpo_vectorized": lambda b: ours.group_normalized(b.rewards, b.group_ids),
    "grpo_passk": lambda b: ours.pass_at_k(b.rewards, b.group_ids),
    "rloo": lambda b: ours.rloo(b.rewards, b.group_ids),
    "rloo_vectorized": lambda b: ours.rloo(b.rewards, b.group_ids, singletons="zero"),
    "opo": lambda b: ours.opo(b.rewards, b.group_ids, b.mask),
    "gpg": lambda b: ours.gpg(b.rewards, b.group_ids),
    "reinforce_plus_plus_baseline": lambda b: ours.reinforce_plus_plus_baseline(
        b.rewards, b.group_ids, b.mask
    ),
    "gdpo": lambda b: ours.gdpo(b.rewards[:, None], b.group_ids, b.mask),
}


@pytest.mark.parametrize("name", OUTCOME)
def test_estimators_of_groups(verl: Any, batch: Batch, name: str) -> None:
    options = {}
    if name == "grpo_passk":
        from verl.trainer.config import AlgoConfig

        options["config"] = AlgoConfig()
        batch.group_ids[batch.group_ids == 7] = 3  # it knows no groups of one
    same(OUTCOME[name](batch), batch.theirs(verl, name, **options), batch.mask)


def test_a_group_mean_without_std(verl: Any, batch: Batch) -> None:
    theirs = batch.theirs(verl, "grpo", norm_adv_by_std_in_grpo=False)
    same(ours.group_centered(batch.rewards, batch.group_ids), theirs, batch.mask)


def test_reinforce_plus_plus(verl: Any, batch: Batch) -> None:
    from verl.trainer.config import AlgoConfig

    theirs = batch.theirs(
        verl,
        "reinforce_plus_plus",
        token_level_rewards=batch.dense_rewards.clone(),
        config=AlgoConfig(gamma=GAMMA),
    )
    found = ours.reinforce_plus_plus(batch.dense_rewards, batch.mask, gamma=GAMMA)
    same(found, theirs, batch.mask)


def test_remax(verl: Any, batch: Batch) -> None:
    theirs = batch.theirs(
        verl,
        "remax",
        token_level_rewards=batch.dense_rewards.clone(),
        reward_baselines=batch.greedy,
    )
    found = ours.remax(batch.dense_rewards, batch.greedy, batch.mask)
    same(found, theirs, batch.mask)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "importance"])
@pytest.mark.parametrize("zero_tail", [False, True], ids=["", "zero tail"])
def test_optimal_token_baseline(verl: Any, batch: Batch, weighted: bool, zero_tail: bool) -> None:
    importance = batch.importance if weighted else None
    theirs = batch.theirs(
        verl,
        "optimal_token_baseline",
        token_level_rewards=batch.dense_rewards.clone(),
        old_log_probs=batch.log_probs,
        sum_pi_squared=batch.collision,
        rollout_is_weights=importance,
        handle_zero_tail=zero_tail,
    )
    found = ours.optimal_token_baseline(
        batch.dense_rewards, batch.group_ids, batch.log_probs, batch.collision, batch.mask,
        importance=importance, zero_tail=zero_tail,
    )  # fmt: skip
    same(found, theirs, batch.mask)


@pytest.mark.parametrize("holes", [False, True], ids=["", "holes"])
def test_gae(verl: Any, batch: Batch, holes: bool) -> None:
    mask = batch.mask.clone()
    if holes:  # an observation between two actions
        mask[:, 3:6] = False
    theirs, returns = verl.get_adv_estimator_fn("gae")(
        batch.dense_rewards, batch.values, mask.to(float64), GAMMA, LAMBDA
    )
    found = ours.gae(batch.dense_rewards, batch.values, mask, gamma=GAMMA, lam=LAMBDA, whiten=True)
    same(found[0], theirs, mask)
    same(found[1], returns, mask)
