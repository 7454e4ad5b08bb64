"""A tiny VLA pushes a block: the simulator's slots, the policy, the groups, runs in miniature."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

np = pytest.importorskip("numpy")
for _needed in ("mujoco", "gymnasium_robotics", "transformers", "matplotlib", "rich"):
    pytest.importorskip(_needed, reason=f"{_needed} is not installed: pip install logpi[recipes]")

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(transformers|gymnasium)\b.*"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning:(transformers|gymnasium)\b.*"),
]

RECIPE = Path(__file__).parents[2] / "recipes" / "simplevla"
MODULES = ("simulator", "expert", "policy", "imitation", "grpo", "summary")
TINY = {
    "--iterations": 2,
    "--eval-every": 1,
    "--heldout": 4,
    "--processes": 0,
    "--threads": 1,
    "--hidden-size": 32,
    "--layers": 1,
    "--demonstrations": 1,
    "--imitation-steps": 60,
    "--imitation-learning-rate": 1e-2,
    "--max-steps": 12,
    "--groups": 3,
    "--group-size": 4,
    "--max-rounds": 2,
    "--mini-batches": 2,
}


@pytest.fixture(scope="module")
def recipe() -> Iterator[SimpleNamespace]:
    """The recipe's modules, which are no package."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these models are too small for two
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(RECIPE), *sys.path])
        modules = {name: importlib.import_module(name) for name in MODULES}
        spec = spec_from_file_location("simplevla_train", RECIPE / "train.py")
        assert spec is not None
        assert spec.loader is not None
        train = module_from_spec(spec)
        spec.loader.exec_module(train)
        yield SimpleNamespace(**modules, train=train)
    for name in MODULES:
        del sys.modules[name]
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def arm(recipe: SimpleNamespace) -> Any:
    return recipe.simulator.Arm()


class Lever:
    """A simulator of nothing: an episode succeeds once a chunk's first action pulls."""

    def reset(self, seeds: Sequence[int]) -> Any:
        self.states = np.random.default_rng(0).standard_normal((len(seeds), 28)).astype(np.float32)
        for row, seed in enumerate(seeds):
            self.states[row] = np.random.default_rng(seed).standard_normal(28)
        return self.states.copy()

    def act(self, slots: Sequence[int], actions: Any) -> Any:
        success = actions[:, 0, 0] > 0.5
        steps = np.where(success, 2, actions.shape[1])
        return SimpleNamespace(states=self.states[slots], steps=steps, success=success)


def _policy(recipe: SimpleNamespace, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return recipe.policy.Policy(hidden_size=32, num_layers=2, chunk_size=2)


def _told(recipe: SimpleNamespace, **changed: Any) -> Any:
    told = recipe.grpo.GRPOSettings(
        seed=0, max_steps=4, groups=8, group_size=8, max_rounds=3, dynamic_sampling=True,
        temperature=1.6, clip_low=0.2, clip_high=0.28, mini_batches=2, epochs=2,
        learning_rate=3e-3, warmup_updates=1,
    )  # fmt: skip
    return dataclasses.replace(told, **changed)


# ---- simulator ----------------------------------------------------------------------------------


def test_slots_are_episodes_of_the_environment_itself(recipe: SimpleNamespace, arm: Any) -> None:
    """Two episodes in turns on one model, against gymnasium's own step on one alone."""
    moves = np.random.default_rng(0).uniform(-1, 1, (2, 4, 3)).astype(np.float32)
    starts = [arm.reset(0, 7), arm.reset(1, 8)]
    for t in range(0, 4, 2):
        found = [arm.act(slot, moves[slot, t : t + 2]) for slot in (0, 1)]
    for slot, seed in ((0, 7), (1, 8)):
        assert (arm.reset(5, seed) == starts[slot]).all()
        for action in moves[slot]:
            for _ in range(recipe.simulator.HOLD):
                observation, _, _, _, info = arm.env.step(np.append(action, np.float32(0)))
        assert (recipe.simulator._state(observation) == found[slot][0]).all()
        assert found[slot][1:] == (2, bool(info["is_success"]))


def test_a_start_is_a_function_of_its_seed_and_not_at_its_goal(arm: Any) -> None:
    states = np.stack([arm.reset(0, seed) for seed in range(40)])
    assert (arm.reset(3, 11) == states[11]).all()
    assert len(np.unique(states[:, 3:5], axis=0)) == 40
    assert (np.linalg.norm(states[:, 3:6] - states[:, 25:28], axis=1) >= 0.05).all()


def test_how_many_processes_makes_no_difference(recipe: SimpleNamespace) -> None:
    moves = np.random.default_rng(0).uniform(-1, 1, (3, 2, 3)).astype(np.float32)
    found = []
    for processes in (0, 2):
        with recipe.simulator.Pool(processes) as pool:
            states = pool.reset([1, 2, 3])
            outcome = pool.act([2, 0], moves[1:])
            assert pool.cpu_seconds() >= 0
            found.append((states, *outcome))
    for one, other in zip(*found, strict=True):
        assert (one == other).all()


def test_the_expert_reaches_the_goal(recipe: SimpleNamespace, arm: Any) -> None:
    shown = recipe.expert.demonstrate(
        arm, 3, first_start=0, max_steps=15, chunk_size=3, noise=0.0, seed=0
    )
    assert shown.known[:, 0].sum() == len(shown.states) < 45
    assert shown.known.all(1).sum() == len(shown.states) - 3 * 2
    assert (abs(shown.actions) <= 1).all()


# ---- policy -------------------------------------------------------------------------------------


def test_every_position_sees_every_other(recipe: SimpleNamespace) -> None:
    policy = _policy(recipe)
    states = torch.randn(2, 28, generator=torch.Generator().manual_seed(0))
    hidden = policy.hidden_states(states)
    assert hidden.shape == (2, 6, 32)
    with torch.no_grad():
        policy.placeholders[-1] += 1
    assert (policy.hidden_states(states)[:, 0] != hidden[:, 0]).any(-1).all()


def test_what_is_trained_is_what_was_drawn(recipe: SimpleNamespace) -> None:
    """The sampler's log-probs are the trainer's, over 256 tokens at the rollout's temperature."""
    policy, codec = _policy(recipe), recipe.policy.CODEC
    states = torch.randn(5, 28, generator=torch.Generator().manual_seed(0))
    sample = policy.act(states, temperature=1.6, seed=1, step=2)
    mask = torch.ones_like(sample.token_ids, dtype=torch.bool)
    scored = policy.log_probs(states, sample.token_ids, temperature=1.6, loss_mask=mask)
    torch.testing.assert_close(scored.log_probs, sample.log_probs, rtol=0, atol=2e-6)
    torch.testing.assert_close(sample.actions, codec.decode(sample.token_ids))
    again = policy.act(states, temperature=1.6, seed=1, step=2)
    assert (again.token_ids == sample.token_ids).all()
    head = policy.head.detach().double()[256:512]
    x = policy.hidden_states(states).detach().double() @ head.T / 1.6
    exact = x.log_softmax(-1).gather(-1, (sample.token_ids - 256)[..., None])[..., 0]
    torch.testing.assert_close(scored.log_probs.detach().double(), exact, rtol=0, atol=2e-6)


def test_imitation_learns_the_shown_actions(recipe: SimpleNamespace, arm: Any) -> None:
    shown = recipe.expert.demonstrate(
        arm, 1, first_start=0, max_steps=15, chunk_size=2, noise=0.1, seed=0
    )
    policy, losses = _policy(recipe), []
    recipe.imitation.imitate(
        policy, shown, steps=60, batch_size=16, learning_rate=1e-2, seed=0, on_step=losses.append
    )
    assert losses[0] > 5 > 2 > losses[-1]  # ln 256 = 5.5


# ---- groups -------------------------------------------------------------------------------------


def test_an_episode_is_the_same_in_any_batch(recipe: SimpleNamespace) -> None:
    policy, roll_out = _policy(recipe), recipe.grpo.roll_out
    whole = roll_out(policy, Lever(), [3, 3, 4, 4], max_steps=4, seed=5)
    half = roll_out(policy, Lever(), [4, 4], max_steps=4, seed=5, first_episode=2)
    acted = half.mask()
    assert (whole.mask()[2:] == acted).all()
    assert (whole.token_ids[2:][acted] == half.token_ids[acted]).all()
    assert (whole.token_ids[0, 0] != whole.token_ids[1, 0]).any()  # of one start, two draws


def test_dynamic_sampling_keeps_groups_with_both_outcomes(recipe: SimpleNamespace) -> None:
    policy = _policy(recipe)
    kept = recipe.grpo.collect(
        policy, Lever(), _told(recipe, group_size=3), first_start=10, sampled_before=0
    )
    rates = kept.episodes.success.float().view(-1, 3).mean(1)
    assert ((rates > 0) & (rates < 1)).all()
    assert 0 < len(rates) == kept.kept * kept.sampled / 3
    every = recipe.grpo.collect(
        policy, Lever(), _told(recipe, group_size=3, dynamic_sampling=False),
        first_start=10, sampled_before=0,
    )  # fmt: skip
    assert len(every.episodes.success) == every.sampled == 24
    assert every.episodes.group_ids.unique().tolist() == list(range(10, 18))
    assert every.success == every.episodes.success.float().mean().item()


def test_what_was_not_acted_changes_no_weight(recipe: SimpleNamespace) -> None:
    told = _told(recipe)
    batch = recipe.grpo.collect(_policy(recipe), Lever(), told, first_start=0, sampled_before=0)
    spoilt = batch.episodes._replace(
        states=batch.episodes.states.clone(), log_probs=batch.episodes.log_probs.clone()
    )
    rest = ~batch.episodes.mask()
    assert rest.any()
    spoilt.log_probs[rest] = torch.nan
    spoilt.states[rest.all(-1)] = torch.nan
    ends = []
    for episodes in (batch.episodes, spoilt):
        policy = _policy(recipe)
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
        recipe.grpo.update(policy, optimizer, episodes, told, iteration=0)
        ends.append(torch.nn.utils.parameters_to_vector(policy.parameters()))
    assert (ends[0] == ends[1]).all()


def test_the_lever_is_learnt_from_success_alone(recipe: SimpleNamespace) -> None:
    policy, told = _policy(recipe), _told(recipe)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=told.learning_rate)
    rates: list[float] = []
    for iteration in range(12):
        batch = recipe.grpo.collect(
            policy, Lever(), told, first_start=100 * iteration, sampled_before=1000 * iteration
        )
        rates.append(batch.success)
        found = recipe.grpo.update(policy, optimizer, batch.episodes, told, iteration=iteration)
        assert found["entropy"] > 0
    assert sum(rates[-3:]) / 3 > 0.15 + sum(rates[:3]) / 3


# ---- runs ---------------------------------------------------------------------------------------


def _arguments(out: Path, **changed: Any) -> list[str]:
    options = TINY | {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    return ["--out", str(out), *(str(part) for option in options.items() for part in option)]


def test_a_cut_run_goes_on_as_if_it_had_not_been_cut(
    recipe: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = recipe.train.main(_arguments(tmp_path / "uncut"))
    assert "| simplevla | 0 |" in capsys.readouterr().out
    (uncut,) = results["simplevla"]
    assert (tmp_path / "uncut" / "curves.png").read_bytes().startswith(b"\x89PNG")

    def cut(*_: Any, iteration: int, **__: Any) -> Any:
        if iteration == 1:
            raise KeyboardInterrupt
        return update(*_, iteration=iteration, **__)

    update = recipe.grpo.update
    monkeypatch.setattr(recipe.grpo, "update", cut)
    with pytest.raises(KeyboardInterrupt):
        recipe.train.main(_arguments(tmp_path / "cut"))
    monkeypatch.undo()
    (resumed,) = recipe.train.main(_arguments(tmp_path / "cut"))["simplevla"]
    assert _timeless(resumed) == _timeless(uncut)
    with pytest.raises(SystemExit, match=r"other settings \(clip_high 0.28 not 0.2\)"):
        recipe.train.main(_arguments(tmp_path / "cut", clip_high=0.2))


def _timeless(metrics: dict[str, Any]) -> str:
    def strip(x: Any) -> Any:
        if isinstance(x, dict):
            return {k: strip(v) for k, v in x.items() if not k.endswith("seconds")}
        return [strip(v) for v in x] if isinstance(x, list) else x

    return json.dumps(strip(metrics))


def test_the_interval_is_wilsons(recipe: SimpleNamespace) -> None:
    assert recipe.summary.interval(0.5, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert recipe.summary.interval(0.0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
