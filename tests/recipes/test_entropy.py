"""The methods side by side, in miniature; and when two solutions of a countdown are the same."""

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
MODULES = ("countdown", "tasks", "model", "loss_head", "grpo", "methods", "sampling",
           "side_by_side")  # fmt: skip
METHODS = ("grpo", "clip-cov", "kl-cov", "flowrl")
RUNS = ("grpo", "clip-cov", "kl-cov", "flowrl-15")
TINY = {
    "--steps": 2,
    "--heldout": 8,
    "--warmup-questions": 30,
    "--rl-questions": 30,
    "--hidden-size": 32,
    "--layers": 1,
    "--warmup-steps": 20,
    "--warmup-batch-size": 32,
    "--prompts-per-step": 4,
    "--num-generations": 4,
    "--learning-rate": 1e-3,
    "--samples": 2,
}


@pytest.fixture(scope="module")
def recipe() -> Iterator[SimpleNamespace]:
    """The modules of both recipes, which are no packages; two of them are called train."""
    for needed in ("trl", "reasoning_gym", "tokenizers", "matplotlib", "scipy"):
        pytest.importorskip(needed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(sys, "path", [*sys.path])  # the script puts its folders there, too
        sys.path[:0] = [str(RECIPES / "reasoning_gym"), str(RECIPES / "entropy")]
        modules = {name: importlib.import_module(name) for name in MODULES}
        yield SimpleNamespace(**modules, train=_script("entropy"), flowrl=_script("flowrl"))
    for name in MODULES:
        del sys.modules[name]


def _script(folder: str) -> Any:
    spec = spec_from_file_location(f"{folder}_train", RECIPES / folder / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _arguments(out: Path, *methods: str) -> list[str]:
    options = [str(part) for option in TINY.items() for part in option]
    return ["--out", str(out), "--seeds", "0", "--method", *methods, *options]


@pytest.fixture(scope="module")
def runs(recipe: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two generations of every method, scored by length: the model knows no answer."""
    out = tmp_path_factory.mktemp("results") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe.tasks.Task, "score", lambda self, text, entry: len(text) % 5 / 4)
        results = recipe.train.main(_arguments(out, *METHODS))
    return SimpleNamespace(results=results, out=out)


# ---- countdown ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("3 + (5 - 1)", "5-1+3", True),
        ("4-(2-1)", "4+1-2", True),
        ("2*3/(4/5)", "5*3*2/4", True),
        ("2*(3+1)", "(1+3)*2", True),
        ("2*3+2", "(3+1)*2", False),
        ("6*1/2", "6/2/1", False),
        ("5-1", "1-5", False),
    ],
)
def test_order_and_brackets_make_no_other_solution(
    recipe: SimpleNamespace, one: str, other: str, same: bool
) -> None:
    canonical = recipe.countdown.canonical
    assert (canonical(one) == canonical(other)) is same


@pytest.mark.parametrize("text", ["9**9**9", "7//2", "f(2)", "1 or 2", "-3+4", "(", "", "1\n+2"])
def test_nothing_but_arithmetic_is_evaluated(recipe: SimpleNamespace, text: str) -> None:
    assert recipe.countdown.canonical(text) is None
    assert not recipe.countdown.solves(text, [3, 4], 1)
    task = _task(recipe)
    task.dataset = SimpleNamespace(score_answer=lambda answer, entry: 0.5 if answer else 0.0)
    assert task.score(text, {}) == 0.0


def test_the_solver_finds_what_a_hand_finds(recipe: SimpleNamespace) -> None:
    found = recipe.countdown.solutions([1, 2, 3], 6)
    keys = {recipe.countdown.canonical(text) for text in found}
    hand = ["1+2+3", "1*2*3", "2*3/1"]
    assert keys == {recipe.countdown.canonical(text) for text in hand}
    assert len(found) == len(keys)


def test_every_solution_satisfies_the_datasets_verifier(recipe: SimpleNamespace) -> None:
    task = _task(recipe)
    for entry in recipe.countdown.with_solutions(task.splits.warmup[:12], 4, seed=0):
        about = entry["metadata"]
        assert recipe.countdown.solves(entry["answer"], about["numbers"], about["target"])
        assert task.score(entry["answer"], entry) == 1.0
        assert task.score(entry["answer"] + "+1", entry) < 1.0


def test_no_problem_is_in_two_splits_in_other_words(recipe: SimpleNamespace) -> None:
    splits = _task(recipe).splits
    asked = [
        (tuple(sorted(e["metadata"]["numbers"])), e["metadata"]["target"])
        for e in splits.heldout + splits.warmup + splits.rl
    ]
    assert len(set(asked)) == len(asked) == 80


def _task(recipe: SimpleNamespace) -> Any:
    return recipe.tasks.Task("countdown", seed=0, heldout=20, warmup=30, rl=30)


# ---- runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", RUNS)
def test_each_method_trains_and_is_measured(runs: SimpleNamespace, method: str) -> None:
    (metrics,) = runs.results[method]
    path = runs.out / "seed0" / method / "metrics.json"
    assert metrics == json.loads(path.read_text())
    assert [step["step"] for step in metrics["steps"]] == [4, 8]  # four updates a generation
    for step in metrics["steps"]:
        assert 0 < step["entropy"] < 7
        assert step["grad_norm"] > 0
    for name in ("accuracy", "sampled_accuracy", "solved", "distinct", "sampled_entropy"):
        assert metrics["after"][name] >= 0


def test_methods_start_from_the_same_samples_and_part(runs: SimpleNamespace) -> None:
    first = {method: runs.results[method][0]["steps"][0] for method in RUNS}
    last = {method: runs.results[method][0]["steps"][1] for method in RUNS}
    assert len({step["reward"] for step in first.values()}) == 1
    assert len({step["entropy"] for step in last.values()}) == len(METHODS)


def test_methods_select_what_they_say(runs: SimpleNamespace) -> None:
    steps = {method: runs.results[method][0]["steps"][-1] for method in RUNS}
    assert 0 < steps["clip-cov"]["clip-cov/selected_fraction"] <= 0.02
    assert 0 < steps["kl-cov"]["kl-cov/selected_fraction"] <= 0.03
    assert steps["flowrl-15"]["flowrl/residual"] != 0
    assert "grpo/clip_fraction_low" in steps["grpo"]


def test_a_finished_run_is_read_and_another_setting_refused(
    recipe: SimpleNamespace, runs: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = _arguments(runs.out, "grpo")
    assert recipe.train.main(arguments) == {"grpo": runs.results["grpo"]}
    assert "| grpo |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"other settings \(kl_cov_coef 1.0 not 2.0\)"):
        recipe.train.main([*arguments, "--kl-cov-coef", "2"])


def test_a_run_leaves_a_picture(runs: SimpleNamespace) -> None:
    assert (runs.out / "curves.png").read_bytes().startswith(b"\x89PNG")


# ---- the law and the samples --------------------------------------------------------------------


def test_the_law_goes_through_all_seeds(recipe: SimpleNamespace) -> None:
    def run(entropies: list[float]) -> dict[str, Any]:
        points = torch.tensor(entropies).double()
        rewards = 0.9 - 0.2 * points.exp()
        pairs = zip(entropies, rewards.tolist(), strict=True)
        return {"steps": [{"entropy": h, "reward": r} for h, r in pairs]}

    fitted = recipe.side_by_side.law([run([1.0, 0.8]), run([0.9, 0.3, 0.1])])
    assert (fitted.a, fitted.b) == pytest.approx((0.2, 0.9))
    assert recipe.side_by_side.law([run([1.0])]) is None


def test_distinct_solutions_are_counted_once(recipe: SimpleNamespace) -> None:
    entries = [{"question": "a", "metadata": {}}, {"question": "b", "metadata": {}}]
    answers = ["1+2", "2 + 1", "1*3", "9", "8", "7", "3", "3"]
    verdicts = {"a": {"1+2", "2 + 1", "1*3"}, "b": {"7"}}
    tokenizer = recipe.model.build_tokenizer([*answers, "a ", "b "], 300)
    model = recipe.model.build_model(tokenizer, hidden_size=32, num_layers=1, vocab_size=300)
    tokenizer.padding_side = "right"
    ends = tokenizer([a + recipe.model.EOS for a in answers], return_tensors="pt", padding=True)
    tokenizer.padding_side = "left"
    model.generate = lambda input_ids, **_: torch.cat(
        [input_ids.repeat_interleave(4, 0), ends["input_ids"]], 1
    )
    task = SimpleNamespace(score=lambda text, entry: float(text in verdicts[entry["question"]]))
    found = recipe.sampling.sampled(
        model, tokenizer, task, entries, samples=4, max_new_tokens=4, seed=0
    )
    assert found["sampled_accuracy"] == 4 / 8
    assert found["solved"] == 1.0
    assert found["distinct"] == (2 + 1) / 2
    assert 0 < found["sampled_entropy"] < 6


def test_flowrl_asks_the_same_script(recipe: SimpleNamespace) -> None:
    args = recipe.flowrl.arguments(["--seeds", "3", "--steps", "5"])
    told = recipe.train.arguments(args)
    assert list(recipe.train._runs(told)) == ["grpo", "flowrl-15", "flowrl-1"]
    assert (told.task, told.seeds, told.steps) == ("countdown", [3], 5)
