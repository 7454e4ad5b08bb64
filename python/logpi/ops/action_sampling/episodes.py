"""Which tokens of a rollout are part of their episode."""

from __future__ import annotations

import torch
from torch import Tensor

from logpi.core import checks


def episode_mask(
    finish_steps: Tensor,  # [..]
    *,
    num_chunks: int,
    chunk_size: int,
    action_dim: int,
) -> Tensor:  # [.., num_chunks * chunk_size * action_dim]
    """True at the tokens of the actions that an environment took before its episode ended.

        mask[.., t] = t < finish_steps * action_dim

    A policy acts in chunks: one forward gives `chunk_size` actions of `action_dim` tokens. A batch
    of environments is fed until the last has finished, and one may finish inside a chunk: the
    tokens that follow were sampled and never acted.

    Args:
        finish_steps: `[..]` int64 (or int32), one an episode: the environment steps taken, the one
            that ended it included; 0 to `num_chunks * chunk_size`. On a GPU nothing reads them
            back: fewer or more count as these.
        num_chunks: forwards of the policy in the rollout; the longest episode's.
        chunk_size: actions of a forward.
        action_dim: tokens of an action.

    Returns:
        Bool `[.., T]`, T = `num_chunks * chunk_size * action_dim`, in the order in which a policy
        gives its tokens (chunk, step, dimension): the `loss_mask` of `action_log_probs`, of the
        advantages and of `policy_loss`. `.unflatten(-1, (num_chunks, -1))` is that of each forward;
        a row's last True is where a reward for the episode belongs.

    Raises:
        ValueError: an int below 1; on a CPU a step out of range.  TypeError: a dtype.

    Memory: the result and one int64 `[T]`. Waits for nothing.
    Source: docs/ops/action_log_probs.md.
    """
    checks.dtype("finish_steps", finish_steps, torch.int64, torch.int32)
    for name, value in (
        ("num_chunks", num_chunks),
        ("chunk_size", chunk_size),
        ("action_dim", action_dim),
    ):
        checks.at_least(name, value, 1)
    steps = num_chunks * chunk_size
    if finish_steps.is_cpu and not torch.compiler.is_compiling():
        bad = (finish_steps < 0) | (finish_steps > steps)
        if bad.any():
            raise ValueError(
                f"finish_steps: expected 0 to {steps} (num_chunks {num_chunks} * chunk_size "
                f"{chunk_size}), got {finish_steps[bad][0].item()}"
            )
    tokens = torch.arange(steps * action_dim, device=finish_steps.device)
    return tokens < (finish_steps.long() * action_dim).unsqueeze(-1)
