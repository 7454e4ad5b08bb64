"""SSRL's phase of reinforcement: GRPO on exact match and form, information left out of the loss."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from facts import Question
from memory import Words
from rollout import Rollouts, roll_out
from torch import Tensor

import logpi
from logpi.advantages import group_normalized
from logpi.objectives import PPOClip
from logpi.rewards import SelfSearch
from logpi.rewards.information import RealSearch

REWARD = SelfSearch()  # 0.9 exact match + 0.1 form


@dataclass(frozen=True)
class GRPOSettings:
    seed: int
    steps: int
    questions_per_step: int
    num_generations: int  # completions a question
    mini_batches: int  # of a step's completions; an update each
    learning_rate: float
    max_new_tokens: int
    information: str  # where it comes from in training: "memory" or "index"
    mask_information: bool  # no gradient through what the model wrote as information


def loss_mask(rollouts: Rollouts, words: Words, *, mask_information: bool) -> Tensor:  # [B, T]
    """True on the tokens to learn from: drawn by the model and, if so told, no information.

    What an index dictated is never learnt: the policy has not chosen it.
    """
    mask = rollouts.drawn.clone()
    if mask_information:
        mask &= torch.tensor([words.information_mask(ids) for ids in rollouts.token_ids.tolist()])
    return mask


def step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    words: Words,
    questions: Sequence[Question],
    told: GRPOSettings,
    engine: RealSearch | None,
    *,
    number: int,
) -> dict[str, float]:
    """Completions of a few questions, and an update for each mini-batch of them.

    Every draw is a function of (seed, number): a resumed run goes on as an uncut one.
    """
    draw = random.Random(f"{told.seed} {number}")
    asked = draw.sample(questions, min(told.questions_per_step, len(questions)))
    each = [question for question in asked for _ in range(told.num_generations)]
    rollouts = roll_out(
        model,
        words,
        [question.text for question in each],
        max_new_tokens=told.max_new_tokens,
        information=told.information,
        engine=engine,
        seed=told.seed,
        step=number,
    )
    rewards = REWARD.details(rollouts.texts, answer=[question.answer for question in each])
    groups = torch.arange(len(asked)).repeat_interleave(told.num_generations)
    advantages = group_normalized(torch.tensor(rewards.rewards), groups)
    mask = loss_mask(rollouts, words, mask_information=told.mask_information)
    shuffled = torch.tensor(draw.sample(range(len(each)), len(each)))
    losses = []
    for rows in shuffled.chunk(told.mini_batches):
        loss = _loss(model, rollouts.select(rows), advantages[rows], mask[rows])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    drawn = rollouts.drawn
    return {
        "reward": sum(rewards.rewards) / len(each),
        **rewards.metrics,
        "asked": sum(rollouts.asked) / len(each),
        "entropy": (rollouts.entropy.sum() / drawn.sum()).item(),
        "trained_fraction": (mask.sum() / drawn.sum()).item(),
        "groups_with_a_difference": (advantages.view(len(asked), -1).abs().amax(1) > 0)
        .float()
        .mean()
        .item(),
        "loss": sum(losses) / len(losses),
    }


def _loss(model: Any, rollouts: Rollouts, advantages: Tensor, mask: Tensor) -> Tensor:
    log_probs = scored(model, rollouts, mask)
    loss, _ = logpi.policy_loss(
        log_probs, rollouts.log_probs, advantages, mask, objective=PPOClip()
    )
    return loss


def scored(model: Any, rollouts: Rollouts, mask: Tensor) -> Tensor:  # [B, T]
    """Log-probs of the completions' tokens; 0, and in no product of the head, outside the mask."""
    ids = torch.cat([rollouts.prompts, rollouts.token_ids], 1)
    attention = torch.cat([rollouts.prompts != Words.PAD, rollouts.attended], 1)
    hidden = model.model(ids, attention_mask=attention, use_cache=False)[0]
    length = mask.shape[1]
    return logpi.linear_log_probs(
        hidden[:, -length - 1 : -1], model.lm_head.weight, rollouts.token_ids, loss_mask=mask
    ).log_probs
