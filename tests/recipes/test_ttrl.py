"""TTRL in miniature: labels only measure, all vote and few are trained on, measures, resume."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(trl|transformers|accelerate)\b.*"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning:(trl|transformers|accelerate)\b.*"),
]

RECIPES = Path(__file__).parents[2] / "recipes"
MODULES = ("countdown", "tasks", "model", "loss_head", "grpo", "runs", "voting", "measuring",
           "curves")  # fmt: skip
VOTES, SAMPLES, PROMPTS, STEPS = 6, 4, 4, 4
CURVES = ("reward", "loss", "grad_norm", "entropy", "majority_ratio")
TINY = {
    "--task": "chain_sum",
    "--seeds": 0,
    "--test": 20,
    "--heldout": 12,
    "--warmup-questions": 120,
    "--hidden-size": 32,
    "--layers": 1,
    "--warmup-steps": 60,
    "--warmup-batch-size": 32,
    "--steps": STEPS,
    "--votes": VOTES,
    "--samples": SAMPLES,
    "--prompts-per-step": PROMPTS,
    "--learning-rate": 1e-3,
    "--eval-steps": 2,
    "--save-steps": 2,
}


@pytest.fixture(scope="module")
def recipe() -> Iterator[SimpleNamespace]:
    """The modules of the recipe and of the one it stands on, which are no packages."""
    for needed in ("trl", "reasoning_gym", "tokenizers", "matplotlib", "rich", "math_verify"):
        pytest.importorskip(needed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(sys, "path", [*sys.path])  # the script puts its folders there, too
        sys.path[:0] = [str(RECIPES / "reasoning_gym"), str(RECIPES / "ttrl")]
        modules = {name: importlib.import_module(name) for name in MODULES}
        spec = spec_from_file_location("ttrl_train", RECIPES / "ttrl" / "train.py")
        assert spec is not None
        assert spec.loader is not None
        script = module_from_spec(spec)
        spec.loader.exec_module(script)
        yield SimpleNamespace(**modules, script=script)
    for name in MODULES:
        del sys.modules[name]


def _arguments(out: Path, *more: str) -> list[str]:
    return ["--out", str(out), *(str(part) for option in TINY.items() for part in option), *more]


@pytest.fixture(scope="module")
def runs(recipe: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One run of each reward, by the script."""
    out = tmp_path_factory.mktemp("results") / "run"
    return SimpleNamespace(results=recipe.script.main(_arguments(out)), out=out)


def _entries(recipe: SimpleNamespace) -> list[dict[str, Any]]:
    task = recipe.tasks.Task("chain_sum", seed=0, heldout=12, warmup=120, rl=20)
    return list(task.splits.rl)


def _trained(
    recipe: SimpleNamespace,
    warm: Path,
    folder: Path,
    entries: list[dict[str, Any]],
    reward: str,
    min_agreement: float = 0.0,
) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    settings = recipe.grpo.GRPOSettings(
        seed=0, steps=3, prompts_per_step=PROMPTS, num_generations=VOTES, learning_rate=1e-3,
        max_new_tokens=8, eval_steps=10, save_steps=10,
    )  # fmt: skip
    model, _, log = recipe.voting.train(
        warm, folder, entries, recipe.voting.REWARDS[reward](num_votes=VOTES, group_size=VOTES),
        settings, num_samples=SAMPLES, min_agreement=min_agreement,
        evaluate=lambda model, tokenizer: {},
    )  # fmt: skip
    return [p.detach().clone() for p in model.parameters()], log


# ---- what the training may know -----------------------------------------------------------------


def test_wrong_labels_change_no_bit_of_the_training(
    recipe: SimpleNamespace, runs: SimpleNamespace, tmp_path: Path
) -> None:
    """The labels are planted wrong: TTRL's weights stay, what it measures does not; the
    supervised reward's weights change, so that a leak would be seen."""
    warm, true = runs.out / "seed0" / "warmup", _entries(recipe)
    wrong = [entry | {"answer": "5"} for entry in true]
    found = {
        (reward, planted): _trained(
            recipe, warm, tmp_path / f"{reward}-{planted}", wrong if planted else true, reward
        )
        for reward in ("majority", "labels")
        for planted in (False, True)
    }
    weights = {key: tensors for key, (tensors, _) in found.items()}
    logs = {key: log for key, (_, log) in found.items()}

    def same(reward: str) -> bool:
        pairs = zip(weights[reward, False], weights[reward, True], strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    assert same("majority")
    assert not same("labels")
    for key in CURVES:
        told, lied = ([log[key] for log in logs["majority", p]] for p in (False, True))
        assert told == lied, key
    measures = ("accuracy", "label_accuracy", "reward_accuracy")
    told, lied = (
        [[log[key] for key in measures] for log in logs["majority", p]] for p in (False, True)
    )
    assert told != lied
    assert all(log["grad_norm"] > 0 for log in logs["majority", False])


@pytest.mark.parametrize("min_agreement", [0.0, 0.4])
def test_all_vote_and_the_first_are_trained_on(
    recipe: SimpleNamespace,
    runs: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    min_agreement: float,
) -> None:
    from trl import GRPOTrainer

    from logpi.advantages import group_normalized
    from logpi.rewards import MajorityVote

    whole, cut, calls = [], [], []
    generate, details = GRPOTrainer._generate_and_score_completions, MajorityVote.details
    cut_down = recipe.voting.VotingTrainer._generate_and_score_completions
    monkeypatch.setattr(
        GRPOTrainer,
        "_generate_and_score_completions",
        lambda *a: whole.append(generate(*a)) or whole[-1],
    )
    monkeypatch.setattr(
        recipe.voting.VotingTrainer,
        "_generate_and_score_completions",
        lambda *a: cut.append(cut_down(*a)) or cut[-1],
    )

    def recorded(self: Any, completions: Any, **columns: Any) -> Any:
        calls.append((list(completions), details(self, completions, **columns)))
        return calls[-1][1]

    monkeypatch.setattr(MajorityVote, "details", recorded)
    _trained(recipe, runs.out / "seed0" / "warmup", tmp_path, _entries(recipe), "majority",
             min_agreement)  # fmt: skip
    monkeypatch.undo()
    assert len(whole) == len(cut) == len(calls) == 3
    for everything, batch, (texts, found) in zip(whole, cut, calls, strict=True):
        assert len(texts) == PROMPTS * VOTES
        rows = [p * VOTES + i for p in range(PROMPTS) for i in range(SAMPLES)]
        for name in ("prompt_ids", "completion_ids", "completion_mask", "advantages"):
            assert torch.equal(batch[name], everything[name][rows]), name
        assert batch["num_items_in_batch"] == batch["completion_mask"].sum()
        rewards = torch.tensor([found.rewards[row] for row in rows])
        assert 0 < rewards.sum() < len(rewards)
        groups = torch.arange(PROMPTS).repeat_interleave(SAMPLES)
        wanted = group_normalized(rewards, groups, eps=1e-4)  # of those that are kept alone
        share = torch.tensor(found.rewards).view(PROMPTS, VOTES).mean(1)
        wanted[share[groups] < min_agreement] = 0.0
        torch.testing.assert_close(batch["advantages"], wanted, rtol=1e-6, atol=1e-6)
        for start in range(0, len(texts), VOTES):  # the label is that of all votes
            group = MajorityVote(symbolic_seconds=0)(texts[start : start + VOTES],
                                                     group_ids=[0] * VOTES)  # fmt: skip
            assert found.rewards[start : start + VOTES] == group


# ---- measures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hedges", "wanted"),
    [  # a hedge is no answer, or its last number is
        ("abstain", {"pass@1": 3 / 12, "maj@n": 2 / 3, "pass@n": 2 / 3, "majority_ratio": 5 / 12}),
        ("vote", {"pass@1": 3 / 12, "maj@n": 1 / 3, "pass@n": 2 / 3, "majority_ratio": 6 / 12}),
    ],
)
def test_measures_are_those_of_a_hand(
    recipe: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    hedges: str,
    wanted: dict[str, float],
) -> None:
    extract = recipe.measuring.EXTRACTS[hedges]
    entries = [
        {"question": name, "answer": answer}
        for name, answer in (("a", "12"), ("b", "-7"), ("c", "1"))
    ]
    answers = ["12", "12", "3", "12 or 3", "-7", "-7 or 8", "9 or 8", "5", "2", "3", "2", "or"]
    tokenizer = recipe.model.build_tokenizer([*answers, "a ", "b ", "c "], 300)
    model = recipe.model.build_model(tokenizer, hidden_size=32, num_layers=1, vocab_size=300)

    def generate(input_ids: torch.Tensor, do_sample: bool, **how: Any) -> torch.Tensor:
        told = answers if do_sample else answers[::4]
        torch.rand(1)  # as a sampler does
        tokenizer.padding_side = "right"
        ends = tokenizer([a + recipe.model.EOS for a in told], return_tensors="pt", padding=True)
        tokenizer.padding_side = "left"
        prompts = input_ids.repeat_interleave(how.get("num_return_sequences", 1), 0)
        return torch.cat([prompts, ends["input_ids"]], 1)

    monkeypatch.setattr(model, "generate", generate)
    how = {"extract": extract, "max_new_tokens": 9}
    state = torch.get_rng_state()
    found = recipe.measuring.sampled(model, tokenizer, entries, votes=4, seed=3, **how)
    assert torch.equal(torch.get_rng_state(), state)
    assert found == pytest.approx(wanted)
    assert recipe.measuring.greedy(model, tokenizer, entries, **how) == 2 / 3


def test_a_word_to_spell_is_read_letter_by_letter(recipe: SimpleNamespace) -> None:
    task = recipe.tasks.Task("spell_backward", seed=0, heldout=5, warmup=40, rl=5)
    words = task.splits.warmup
    slipped = recipe.tasks.with_slips(words, 0.5, seed=0)
    wrong = [
        [a != b for a, b in zip(one["answer"], two["answer"], strict=True)]
        for one, two in zip(words, slipped, strict=True)
    ]
    assert {sum(letters) for letters in wrong} == {0, 1}
    assert 10 < sum(map(any, wrong)) < 30
    kind = recipe.measuring.KINDS["spell_backward"]
    texts = (text for e in words for text in (recipe.tasks.prompt(e), e["answer"]))
    tokenizer = recipe.model.build_tokenizer(texts, pieces=kind.pieces)
    for entry in words:
        assert len(tokenizer.tokenize(entry["answer"])) == len(entry["answer"])
        asked = tokenizer.tokenize(recipe.tasks.prompt(entry))
        assert asked[-1 - len(entry["answer"]) : -1] == list(entry["answer"])[::-1]
    assert kind.extracts["abstain"](" flank ") == "flank"
    assert kind.extracts["abstain"](" ") is None


# ---- runs ---------------------------------------------------------------------------------------


def test_each_reward_trains_and_is_measured(runs: SimpleNamespace) -> None:
    assert set(runs.results) == {"majority", "labels"}
    for name, (metrics,) in runs.results.items():
        assert metrics == json.loads((runs.out / "seed0" / name / "metrics.json").read_text())
        assert [step["step"] for step in metrics["steps"]] == [1, 2, 3, 4]
        assert [step["step"] for step in metrics["steps"] if "test_greedy" in step] == [2, 4]
        assert metrics["steps"][-1]["heldout_greedy"] == metrics["after"]["heldout_greedy"]
        assert metrics["cpu_seconds"] > 0
        for step in metrics["steps"]:
            assert 0 < step["majority_ratio"] <= 1
            assert 0 <= step["label_accuracy"] <= 1
    majority, labels = (runs.results[name][0] for name in ("majority", "labels"))
    assert majority["before"] == labels["before"]
    # The same completions, rewarded by the vote or by their labels.
    first, other = majority["steps"][0], labels["steps"][0]
    assert first["accuracy"] == other["accuracy"]
    assert first["entropy"] == other["entropy"]
    assert first["reward_accuracy"] < 1
    assert other["reward_accuracy"] == first["reward_accuracy"]
    assert first["reward"] != other["reward"] == pytest.approx(other["kept_accuracy"])


def test_a_finished_run_is_read_and_another_setting_refused(
    recipe: SimpleNamespace, runs: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    again = recipe.script.main(_arguments(runs.out, "--reward", "majority"))
    assert again == {"majority": runs.results["majority"]}
    assert "| heldout | 0 | majority |" in capsys.readouterr().out
    assert (runs.out / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match=r"other settings \(votes 6 not 8\)"):
        recipe.script.main(_arguments(runs.out, "--votes", "8"))


def test_an_interrupted_run_goes_on_to_the_same_bits(
    recipe: SimpleNamespace,
    runs: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_log = recipe.voting._Report.on_log
    seen: list[int] = []

    def watched(self: Any, args: Any, state: Any, *rest: Any, **named: Any) -> None:
        on_log(self, args, state, *rest, **named)
        seen.append(state.global_step)
        if len(seen) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(recipe.voting._Report, "on_log", watched)
    arguments = _arguments(tmp_path / "run", "--reward", "majority")
    with pytest.raises(KeyboardInterrupt):
        recipe.script.main(arguments)
    (resumed,) = recipe.script.main(arguments)["majority"]
    assert seen[:5] == [1, 2, 3, 3, 4]  # on from the checkpoint of step 2
    (straight,) = runs.results["majority"]
    for key in (*CURVES, "label_accuracy"):
        assert [s[key] for s in resumed["steps"]] == [s[key] for s in straight["steps"]], key
    assert resumed["after"] == straight["after"]
