"""The reasoning-gym recipe in miniature: splits, verifier, timer, resume, both log-prob paths."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
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

FOLDER = Path(__file__).parents[2] / "recipes" / "reasoning_gym"
MODULES = ("countdown", "tasks", "model", "loss_head", "grpo", "runs", "summary", "train")
CURVES = ("reward", "entropy", "loss", "grad_norm")
TINY = {
    "--heldout": 40,
    "--warmup-questions": 120,
    "--rl-questions": 100,
    "--hidden-size": 32,
    "--layers": 1,
    "--vocab-size": 200,
    "--warmup-steps": 60,
    "--warmup-batch-size": 32,
    "--steps": 5,
    "--prompts-per-step": 4,
    "--num-generations": 4,
    "--learning-rate": 1e-3,
    "--eval-steps": 2,
    "--save-steps": 2,
}


@pytest.fixture(scope="module")
def recipe() -> Iterator[SimpleNamespace]:
    """The recipe's modules. It is no package: its folder is where Python finds the script."""
    for needed in ("trl", "reasoning_gym", "tokenizers", "matplotlib", "rich"):
        pytest.importorskip(needed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.syspath_prepend(FOLDER)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name in MODULES:
        del sys.modules[name]


def _arguments(out: Path, **changed: Any) -> list[str]:
    options = TINY | {"--out": out} | {f"--{k.replace('_', '-')}": v for k, v in changed.items()}
    return [str(part) for option in options.items() for part in option]


@pytest.fixture(scope="module")
def both(recipe: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One run of `--log-probs both`: its metrics, its folder, how often logpi's head was called."""
    from logpi.integrations.trl import LogProbHead

    calls, apply = [], LogProbHead.apply
    out = tmp_path_factory.mktemp("results") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LogProbHead, "apply", lambda *a: calls.append(1) or apply(*a))
        results = recipe.train.main(_arguments(out, log_probs="both"))
    return SimpleNamespace(results=results, out=out, calls=len(calls))


def _task(recipe: SimpleNamespace, seed: int = 0, **sizes: int) -> Any:
    return recipe.tasks.Task(
        "chain_sum", seed=seed, **({"heldout": 500, "warmup": 1500, "rl": 1900} | sizes)
    )


# ---- data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_no_question_is_in_two_splits_or_twice(recipe: SimpleNamespace, seed: int) -> None:
    splits = _task(recipe, seed).splits
    assert [len(s) for s in (splits.heldout, splits.warmup, splits.rl)] == [500, 1500, 1900]
    questions = [e["question"] for e in splits.heldout + splits.warmup + splits.rl]
    assert len(set(questions)) == len(questions)


def test_seeds_draw_other_splits(recipe: SimpleNamespace) -> None:
    """reasoning-gym's seeds 0 and 1 share all entries but one: ours must not."""
    first, second = ([e["question"] for e in _task(recipe, s).splits.heldout] for s in (0, 1))
    assert len(set(first) & set(second)) < 150  # of 4000 questions, 500 and 500: 63 by chance


def test_more_questions_than_the_task_has_raise(recipe: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=r"expected 5000 different questions, found \d+"):
        _task(recipe, heldout=500, warmup=500, rl=4000)


def test_the_score_is_the_datasets_own(recipe: SimpleNamespace) -> None:
    task = _task(recipe)
    entry = {"question": "", "answer": "12", "metadata": {}}
    score = {text: task.score(text, entry) for text in ("12", " +12.0 ", "12 or 15", "13", "")}
    assert score == {"12": 1.0, " +12.0 ": 1.0, "12 or 15": 0.25, "13": 0.0, "": 0.0}
    for entry in task.splits.rl[:50]:
        assert task.score(entry["answer"], entry) == 1.0
    task.dataset = SimpleNamespace(score_answer=lambda answer, entry: (answer, entry)[0] == "?")
    assert task.score(" ? ", entry) == 1.0


def test_hedges_keep_the_answer_and_lose_the_score(recipe: SimpleNamespace) -> None:
    task, hedge = _task(recipe), recipe.tasks.with_hedges
    entries = task.splits.warmup
    assert hedge(entries, 0.0, seed=0) == entries
    hedged = hedge(entries, 0.6, seed=0)
    changed = [(a, b) for a, b in zip(entries, hedged, strict=True) if a != b]
    assert 0.55 < len(changed) / len(entries) < 0.65
    for original, entry in changed:
        assert entry["answer"].startswith(original["answer"] + " or ")
        assert 0 < task.score(entry["answer"], original) < 1
    assert hedge(entries, 0.6, seed=0) == hedged != hedge(entries, 0.6, seed=1)


def test_the_reward_scores_each_completion_against_its_own_question(
    recipe: SimpleNamespace,
) -> None:
    task = _task(recipe)
    entries = task.splits.rl
    reward = recipe.grpo.reward(task, entries)
    completions = [entries[7]["answer"], entries[3]["answer"], "nothing"]
    assert reward(completions=completions, index=[7, 3, 3], prompts=[]) == [1.0, 1.0, 0.0]


# ---- model --------------------------------------------------------------------------------------


def test_every_digit_is_a_token_and_text_survives(recipe: SimpleNamespace) -> None:
    texts = [recipe.tasks.prompt(e) + e["answer"] for e in _task(recipe).splits.warmup]
    tokenizer = recipe.model.build_tokenizer(texts)
    for text in texts[:100]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        tokens = tokenizer.convert_ids_to_tokens(ids)
        assert all(
            token.isdigit() == (len(token) == 1 and token in "0123456789") for token in tokens
        )
        assert len(ids) < 16  # the phrase around the numbers is one token


def test_a_vocabulary_below_the_tokenizers_raises(recipe: SimpleNamespace) -> None:
    tokenizer = recipe.model.build_tokenizer(["1 + 1 = 2"])
    with pytest.raises(ValueError, match="vocab_size: expected at least"):
        recipe.model.build_model(tokenizer, hidden_size=32, num_layers=1, vocab_size=8)


def test_accuracy_counts_exact_answers_only(
    recipe: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = _task(recipe)
    entries = task.splits.heldout[:4]
    tokenizer = recipe.model.build_tokenizer(recipe.tasks.prompt(e) for e in task.splits.heldout)
    model = recipe.model.build_model(tokenizer, hidden_size=32, num_layers=1, vocab_size=300)
    answers = [e["answer"] for e in entries]
    answers[1] += "7"  # the oracle is in it: partial reward, no accuracy
    answers[2] = ""

    def generate(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        ends = tokenizer(answers, return_tensors="pt", padding=True)["input_ids"]
        return torch.cat([input_ids, ends], 1)

    monkeypatch.setattr(model, "generate", generate)
    assert recipe.model.greedy_accuracy(model, tokenizer, task, entries, max_new_tokens=8) == 0.5


# ---- the timer ----------------------------------------------------------------------------------


def test_the_timer_changes_no_bit_and_times_both_directions(
    recipe: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl.trainer import utils

    before = utils._ChunkedLogProbFunction
    timer = recipe.loss_head.LossHeadTimer()
    clock = iter([10.0, 13.0, 20.0, 25.0])  # forward 3 s, backward 5 s
    monkeypatch.setattr(recipe.loss_head, "perf_counter", lambda: next(clock))
    hidden, weight = torch.randn(9, 8), torch.randn(31, 8)
    ids, upstream = torch.randint(0, 31, (9,)), torch.randn(9)

    def run() -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
        head = utils._ChunkedLogProbFunction
        outputs = head.apply(*leaves, None, ids, 0.9, 64, None, 1.0, ("entropy", "is_top1"))
        assert [x is not None and x.requires_grad for x in outputs] == [True, True, *[False] * 3]
        (outputs[0] * upstream).sum().backward()
        return [*outputs[:2], *(x.grad for x in leaves)]

    plain = run()
    with timer.installed():
        timed = run()
    assert utils._ChunkedLogProbFunction is before
    assert all(torch.equal(a, b) for a, b in zip(plain, timed, strict=True))
    assert (timer.forward_seconds, timer.backward_seconds, timer.calls) == (3.0, 5.0, 1)


# ---- runs ---------------------------------------------------------------------------------------


def test_both_paths_give_the_same_curves(recipe: SimpleNamespace, both: SimpleNamespace) -> None:
    ours, theirs = both.results["logpi"], both.results["torch"]
    assert both.calls == TINY["--steps"]  # once a step, and never on TRL's own path
    for key in CURVES:
        got, wanted = ([step[key] for step in run["steps"]] for run in (ours, theirs))
        assert got == pytest.approx(wanted, rel=1e-3, abs=1e-5), key
    assert len({round(step["entropy"], 4) for step in ours["steps"]}) == TINY["--steps"]
    assert ours["accuracy_before"] == theirs["accuracy_before"]


def test_a_run_leaves_metrics_and_curves(both: SimpleNamespace) -> None:
    for name in ("logpi", "torch"):
        metrics = json.loads((both.out / name / "metrics.json").read_text())
        assert metrics == both.results[name]
        assert (both.out / name / "curves.png").read_bytes().startswith(b"\x89PNG")
        steps = metrics["steps"]
        assert [step["step"] for step in steps] == [1, 2, 3, 4, 5]
        assert [s["step"] for s in steps if "heldout_accuracy" in s] == [2, 4, 5]
        assert metrics["accuracy_after"] == steps[-1]["heldout_accuracy"]
        assert all(step["loss_head_calls"] == 1 for step in steps)
        assert 0 < metrics["loss_head_seconds"] < metrics["grpo_seconds"]
        assert metrics["settings"]["seed"] == 0
        assert metrics["versions"]["torch"] == torch.__version__


def test_a_finished_run_is_read_and_not_repeated(
    recipe: SimpleNamespace, both: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe.train.main(_arguments(both.out, log_probs="logpi")) == {
        "logpi": both.results["logpi"]
    }
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("logpi: held-out accuracy ")
    assert "in the loss head" in last


def test_other_settings_in_the_same_folder_are_refused(
    recipe: SimpleNamespace, both: SimpleNamespace
) -> None:
    with pytest.raises(SystemExit, match=r"other settings \(seed 0 not 1\)"):
        recipe.train.main(_arguments(both.out, seed=1))
    assert (both.out / "logpi" / "metrics.json").exists()


@pytest.mark.parametrize("step", [1, 3])  # before the first checkpoint, and between two
def test_an_interrupted_run_goes_on_to_the_same_curves(
    recipe: SimpleNamespace,
    both: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    progress = recipe.grpo._Progress
    on_log = progress.on_log

    def interrupted(self: Any, args: Any, state: Any, *rest: Any, **named: Any) -> None:
        on_log(self, args, state, *rest, **named)
        if state.global_step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(progress, "on_log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            recipe.train.main(_arguments(tmp_path / "run"))
    assert not (tmp_path / "run" / "logpi" / "metrics.json").exists()
    resumed_at = []
    with monkeypatch.context() as patch:
        patch.setattr(
            progress,
            "on_log",
            lambda self, args, state, *rest, **named: (
                resumed_at.append(state.global_step),
                on_log(self, args, state, *rest, **named),
            )[1],
        )
        resumed = recipe.train.main(_arguments(tmp_path / "run"))["logpi"]
    assert resumed_at[0] == step  # 1: from nothing; 3: from the checkpoint of step 2
    for key in CURVES:
        straight = [log[key] for log in both.results["logpi"]["steps"]]
        assert [log[key] for log in resumed["steps"]] == straight, key
    assert resumed["accuracy_after"] == both.results["logpi"]["accuracy_after"]
    assert resumed["loss_head_seconds"] > 0


def test_a_checkpoint_cut_short_is_passed_over(recipe: SimpleNamespace, tmp_path: Path) -> None:
    assert recipe.grpo.newest_checkpoint(tmp_path) is None
    for step in (2, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").touch()
    assert recipe.grpo.newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
