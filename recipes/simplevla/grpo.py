"""SimpleVLA-RL's GRPO: groups from one start, success or none, dynamic sampling, clip-higher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from policy import CODEC, Policy
from simulator import ACTION_DIM, Pool
from torch import Tensor

import logpi
from logpi.advantages import group_normalized
from logpi.objectives import PPOClip


@dataclass(frozen=True)
class GRPOSettings:
    seed: int
    max_steps: int  # of an episode
    groups: int  # of a round; each is a start
    group_size: int  # episodes from one start
    max_rounds: int  # of an iteration, to find groups / 2 groups with both outcomes
    dynamic_sampling: bool
    temperature: float
    clip_low: float
    clip_high: float
    mini_batches: int
    epochs: int
    learning_rate: float
    warmup_updates: int  # of the learning rate: Adam's first steps undo a cold start


class Episodes(NamedTuple):
    """B episodes of C chunks of K tokens."""

    states: Tensor  # [B, C, STATE_DIM]
    token_ids: Tensor  # [B, C, K]
    log_probs: Tensor  # [B, C, K] as sampled
    steps: Tensor  # [B] int64 that the environment took
    success: Tensor  # [B] bool
    group_ids: Tensor  # [B] int64: the start

    def select(self, rows: Tensor) -> Episodes:
        return Episodes(*(x[rows] for x in self))

    def mask(self) -> Tensor:  # [B, C, K]
        """True at the tokens of actions that were taken."""
        chunks, tokens = self.token_ids.shape[1:]
        return logpi.episode_mask(
            self.steps, num_chunks=chunks, chunk_size=tokens // ACTION_DIM, action_dim=ACTION_DIM
        ).view(len(self.steps), chunks, tokens)


@torch.no_grad()
def roll_out(
    policy: Policy,
    pool: Pool,
    starts: Sequence[int],
    *,
    max_steps: int,
    temperature: float = 1.0,
    greedy: bool = False,
    seed: int = 0,
    first_episode: int = 0,
) -> Episodes:
    """An episode from each start. A draw is keyed by (seed, chunk, episode, token): the episodes
    do not depend on how they are batched; `first_episode` counts those drawn before."""
    num, size, tokens = len(starts), policy.chunk_size, policy.num_tokens
    chunks = max_steps // size
    now = torch.from_numpy(pool.reset(starts))
    states = torch.zeros(num, chunks, now.shape[1])
    token_ids = torch.full((num, chunks, tokens), CODEC.support.start)
    log_probs = torch.zeros(num, chunks, tokens)
    steps = torch.zeros(num, dtype=torch.int64)
    success = torch.zeros(num, dtype=torch.bool)
    for chunk in range(chunks):
        (rows,) = torch.nonzero(~success, as_tuple=True)
        if len(rows) == 0:
            break
        keys = (first_episode + rows)[:, None] * tokens + torch.arange(tokens)
        sample = policy.act(
            now[rows], temperature=temperature, seed=seed, step=chunk, row_ids=keys, greedy=greedy
        )
        states[rows, chunk] = now[rows]
        token_ids[rows, chunk] = sample.token_ids
        log_probs[rows, chunk] = sample.log_probs
        actions = sample.actions.view(-1, size, ACTION_DIM).numpy()
        outcome = pool.act(rows.tolist(), actions)
        now[rows] = torch.from_numpy(outcome.states)
        steps[rows] += torch.from_numpy(outcome.steps)
        success[rows] = torch.from_numpy(outcome.success)
    group_ids = torch.tensor(starts)
    return Episodes(states, token_ids, log_probs, steps, success, group_ids)


class Batch(NamedTuple):
    """What an iteration learns from, and what it took to find it."""

    episodes: Episodes
    sampled: int  # episodes
    success: float  # of all that were sampled
    kept: float  # fraction of the groups


def collect(
    policy: Policy, pool: Pool, told: GRPOSettings, *, first_start: int, sampled_before: int
) -> Batch:
    """Rounds of groups, each from a start never used before.

    Dynamic sampling keeps the groups in which some episodes succeed and some do not: the others
    have no advantage. It asks for more until half a round's groups are kept. Without it, all
    groups of one round are taken as they come.
    """
    kept, all_success = [], []
    sampled = groups = 0
    for _ in range(told.max_rounds):
        first = first_start + sampled // told.group_size
        starts = [first + i // told.group_size for i in range(told.groups * told.group_size)]
        episodes = roll_out(
            policy,
            pool,
            starts,
            max_steps=told.max_steps,
            temperature=told.temperature,
            seed=told.seed,
            first_episode=sampled_before + sampled,
        )
        sampled += len(starts)
        all_success.append(episodes.success.float())
        rates = all_success[-1].view(-1, told.group_size).mean(1)
        mixed = (rates > 0) & (rates < 1)
        groups += int(mixed.sum())
        wanted = mixed if told.dynamic_sampling else torch.ones_like(mixed)
        kept.append(episodes.select(wanted.repeat_interleave(told.group_size)))
        if groups >= told.groups // 2 or not told.dynamic_sampling:
            break
    joined = Episodes(*(torch.cat(parts) for parts in zip(*kept, strict=True)))
    total = torch.cat(all_success)
    return Batch(joined, sampled, total.mean().item(), groups * told.group_size / len(total))


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    batch: Episodes,
    told: GRPOSettings,
    *,
    iteration: int,
) -> dict[str, float]:
    """`epochs` times `mini_batches` steps of the clipped surrogate; means of the metrics."""
    draw = torch.Generator().manual_seed(told.seed * 1_000_003 + iteration)
    advantages = group_normalized(batch.success.float(), batch.group_ids)
    metrics: dict[str, list[float]] = {}
    done = iteration * told.epochs * told.mini_batches
    for _ in range(told.epochs):
        order = torch.randperm(len(advantages), generator=draw)
        for rows in order.tensor_split(told.mini_batches):
            if len(rows) == 0:  # fewer episodes than mini-batches
                continue
            done += 1
            for group in optimizer.param_groups:
                group["lr"] = told.learning_rate * min(1.0, done / told.warmup_updates)
            found = _step(policy, optimizer, batch.select(rows), advantages[rows], told)
            for name, value in found.items():
                metrics.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in metrics.items()}


def _step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    batch: Episodes,
    advantages: Tensor,
    told: GRPOSettings,
) -> dict[str, float]:
    mask = batch.mask()
    acted = mask.any(-1)  # [B, C]: the forwards that an episode had
    scored = policy.log_probs(
        batch.states[acted],
        batch.token_ids[acted],
        temperature=told.temperature,
        loss_mask=mask[acted],
    )
    log_probs = torch.zeros_like(batch.log_probs)
    log_probs[acted] = scored.log_probs
    loss, metrics = logpi.policy_loss(
        log_probs.flatten(1),
        batch.log_probs.flatten(1),
        advantages,
        mask.flatten(1),
        objective=PPOClip(told.clip_low, told.clip_high),
        aggregation="seq-mean-token-mean",
    )
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    assert scored.entropy is not None
    return {
        "entropy": (scored.entropy.sum() / mask.sum()).item(),
        "grad_norm": norm.item(),
        **metrics.floats(),
    }
