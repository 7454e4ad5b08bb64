"""FetchPush of gymnasium-robotics in MuJoCo: many episodes at once in a few processes."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import time
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ENVIRONMENT = "FetchPush-v4"
# Where episodes start, relative to the gripper, in metres on the table: a box of the block's places
# and one of the goal's. FetchPush's own boxes are 30 cm wide and around the gripper.
BLOCK, BLOCK_SPREAD = (0.0, 0.11), (0.03, 0.03)
GOAL, GOAL_SPREAD = (0.0, 0.22), (0.10, 0.06)
HOLD = 2  # control periods of 40 ms that an action lasts
STATE_DIM = 28  # 25 of the arm and the block, 3 of the goal
ACTION_DIM = 3  # of the gripper's motion; its fingers are locked in this task


class Outcome(NamedTuple):
    """Of one chunk of actions in each of N episodes."""

    states: NDArray[np.float32]  # [N, STATE_DIM] after it
    steps: NDArray[np.int64]  # [N] taken: fewer than the chunk's where it ended in success
    success: NDArray[np.bool_]  # [N]


class Arm:
    """Episodes by slot, in one process and one simulator.

    A slot is what changes in the course of an episode: an MjData and a goal. The environment is
    made once, its model is shared, and its own methods move whichever slot is put into it.
    """

    def __init__(self, **options: Any) -> None:
        self.env = _make(**options)
        self.slots: dict[int, tuple[Any, NDArray[np.float64]]] = {}

    def reset(self, slot: int, seed: int) -> NDArray[np.float32]:
        """Starts an episode; the same `seed`, the same start. None starts at its goal."""
        import mujoco

        data, _ = self.slots.get(slot) or (mujoco.MjData(self.env.model), None)
        env = self.env
        env.data = data
        env.reset(seed=seed)
        while True:
            block, goal = (
                env.initial_gripper_xpos[:2] + centre + env.np_random.uniform(-1, 1, 2) * spread
                for centre, spread in ((BLOCK, BLOCK_SPREAD), (GOAL, GOAL_SPREAD))
            )
            env.goal[:2] = goal
            data.joint("object0:joint").qpos[:2] = block
            mujoco.mj_forward(env.model, data)
            if not self._at_goal(data.site("object0").xpos):
                break
        self.slots[slot] = data, env.goal
        return _state(env._get_obs())

    def act(self, slot: int, actions: NDArray[np.float32]) -> tuple[NDArray[np.float32], int, bool]:
        """`actions` `[chunk, ACTION_DIM]`, to the first at which the block is at its goal."""
        env = self.env
        env.data, env.goal = self.slots[slot]
        taken, success = 0, False
        for action in actions:
            # What the environment's step does, but for an observation that nobody reads.
            command = np.clip(np.append(action, np.float32(0)), -1, 1)
            for _ in range(HOLD):
                env._set_action(command)
                env._mujoco_step(command)
                env._step_callback()
            taken += 1
            success = self._at_goal(env.data.site("object0").xpos)
            if success:
                break
        return _state(env._get_obs()), taken, success

    def cpu_seconds(self, slot: int) -> float:
        """Of this process."""
        return time.process_time()

    def frame(self, slot: int) -> NDArray[np.uint8]:
        """`[height, width, 3]`; of an Arm(render_mode="rgb_array", ..)."""
        import mujoco

        data, self.env.goal = self.slots[slot]
        mujoco.mj_copyData(self._shown(), self.env.model, data)
        return np.asarray(self.env.render())

    def _shown(self) -> Any:
        """The MjData that the environment's renderer was made with."""
        self.env.data = self.env.mujoco_renderer.data
        return self.env.data

    def _at_goal(self, achieved: NDArray[np.float64]) -> bool:
        return bool(self.env._is_success(achieved, self.env.goal))


class Pool:
    """Arms in `processes` processes (0: in this one). What comes out does not depend on how many.

    Used as a context manager.
    """

    def __init__(self, processes: int) -> None:
        context = multiprocessing.get_context("spawn")  # torch has threads: no fork
        self.pipes: list[Connection] = []
        self.workers: list[Any] = []
        self.here = None if processes else Arm()
        for _ in range(processes):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_serve, args=(theirs,), daemon=True)
            worker.start()
            theirs.close()
            self.pipes.append(ours)
            self.workers.append(worker)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self.pipes:
            pipe.close()  # a worker that reads the end of its pipe returns
        for worker in self.workers:
            worker.join()

    def reset(self, seeds: Sequence[int]) -> NDArray[np.float32]:
        """Slot i starts at `seeds[i]`. Returns states `[N, STATE_DIM]`."""
        return np.stack(self._ask("reset", list(enumerate(seeds))))

    def act(self, slots: Sequence[int], actions: NDArray[np.float32]) -> Outcome:
        """`actions` `[N, chunk, ACTION_DIM]`, those of `slots[i]` in row i."""
        states, steps, success = zip(
            *self._ask("act", list(zip(slots, actions, strict=True))), strict=True
        )
        return Outcome(np.stack(states), np.array(steps), np.array(success))

    def cpu_seconds(self) -> float:
        """Of the simulators' processes, if they are not this one."""
        return sum(self._ask("cpu_seconds", [(slot,) for slot in range(len(self.pipes))]))

    def _ask(self, method: str, calls: list[tuple[Any, ...]]) -> list[Any]:
        if self.here is not None:
            return [getattr(self.here, method)(*call) for call in calls]
        owners = [call[0] % len(self.pipes) for call in calls]
        for number, pipe in enumerate(self.pipes):
            own = [call for call, owner in zip(calls, owners, strict=True) if owner == number]
            pipe.send((method, own))
        answers = [iter(pipe.recv()) for pipe in self.pipes]
        return [next(answers[owner]) for owner in owners]


def _serve(pipe: Connection) -> None:
    """A worker: (method, calls) in, the list of what they return out."""
    arm = Arm()
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            method, calls = pipe.recv()
            pipe.send([getattr(arm, method)(*call) for call in calls])


def _make(**options: Any) -> Any:
    """The environment without gymnasium's wrappers: time and ends are the recipe's."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # of environments that are not this one
        import gymnasium
        import gymnasium_robotics

        gymnasium.register_envs(gymnasium_robotics)
        env = gymnasium.make(ENVIRONMENT, disable_env_checker=True, **options)
        env.reset(seed=0)
    return env.unwrapped


def _state(observation: dict[str, NDArray[np.float64]]) -> NDArray[np.float32]:
    parts = observation["observation"], observation["desired_goal"]
    return np.concatenate(parts).astype(np.float32)
