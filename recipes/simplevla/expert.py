"""A scripted expert for FetchPush, and its demonstrations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from simulator import ACTION_DIM, Arm


class Demonstrations(NamedTuple):
    """Every step of every episode, with the actions from there on."""

    states: NDArray[np.float32]  # [S, STATE_DIM]
    actions: NDArray[np.float32]  # [S, chunk, ACTION_DIM]
    known: NDArray[np.bool_]  # [S, chunk]: False after the episode's end


def expert(state: NDArray[np.float32]) -> NDArray[np.float32]:
    """Goes behind the block, seen from the goal, comes down and pushes; `[ACTION_DIM]`."""
    gripper, block, goal = state[:3], state[3:6], state[25:28]
    way = goal[:2] - block[:2]
    distance = float(np.linalg.norm(way))
    ahead = way / (distance + 1e-9)
    behind = block[:2] - 0.07 * ahead
    offset = gripper[:2] - block[:2]
    along = float(offset @ ahead)
    aside = float(np.linalg.norm(offset - along * ahead))
    low = gripper[2] < block[2] + 0.03
    if along < 0 and aside < 0.015 and low:  # push
        xy = 8 * (block[:2] + min(0.03, distance) * ahead - gripper[:2])
        xy *= min(1.0, 0.6 / (float(np.linalg.norm(xy)) + 1e-9))
        z = 10 * (block[2] - gripper[2])
    elif np.linalg.norm(gripper[:2] - behind) < 0.015:  # come down
        xy, z = 10 * (behind - gripper[:2]), 10 * (block[2] - gripper[2])
    else:  # go there; up first, not to sweep the block away
        near = gripper[2] < block[2] + 0.06 and abs(along) + aside < 0.12
        xy = 0 * behind if near else 10 * (behind - gripper[:2])
        z = 10 * (block[2] + 0.09 - gripper[2])
    return np.clip(np.append(xy, z), -1, 1).astype(np.float32)


def demonstrate(
    arm: Arm,
    count: int,
    *,
    first_start: int,
    max_steps: int,
    chunk_size: int,
    noise: float,
    seed: int,
) -> Demonstrations:
    """`count` successful episodes, each from another start. Gaussian `noise` on what it does (and
    on what is learnt from it) shows the policy more than one way."""
    draw = np.random.default_rng(seed)
    states, actions, known = [], [], []
    start = first_start
    while count > 0:
        path, moves, success = _episode(arm, start, max_steps, noise, draw)
        start += 1
        if not success:
            continue
        count -= 1
        length = len(moves)
        moves += [np.zeros(ACTION_DIM, np.float32)] * chunk_size
        for t in range(length):
            states.append(path[t])
            actions.append(np.stack(moves[t : t + chunk_size]))
            known.append(np.arange(t, t + chunk_size) < length)
    return Demonstrations(np.stack(states), np.stack(actions), np.stack(known))


def _episode(
    arm: Arm, start: int, max_steps: int, noise: float, draw: np.random.Generator
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]], bool]:
    state = arm.reset(0, start)
    states, actions = [], []
    for _ in range(max_steps):
        action = expert(state) + noise * draw.standard_normal(ACTION_DIM).astype(np.float32)
        states.append(state)
        actions.append(np.clip(action, -1, 1))
        state, _, success = arm.act(0, actions[-1][None])
        if success:
            return states, actions, True
    return states, actions, False
