"""The flowchart recipe in miniature: no function in two splits, and the sandbox is the reward."""

from __future__ import annotations

import importlib
import json
import random
import re
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(trl|transformers|accelerate)\b.*"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning:(trl|transformers|accelerate)\b.*"),
    pytest.mark.skipif(sys.platform != "linux", reason="sandbox: expected Linux"),
]

RECIPES = Path(__file__).parents[2] / "recipes"
MODULES = ("countdown", "tasks", "model", "loss_head", "grpo", "runs", "charts", "judging",
           "figures", "warmup")  # fmt: skip
SPLITS = ("heldout", "rl")
TINY = {
    "--heldout": 36,
    "--rl-charts": 36,
    "--hidden-size": 32,
    "--layers": 2,
    "--warmup-batch-size": 12,
    "--target-loss": 100,
    "--steps": 2,
    "--prompts-per-step": 3,
    "--num-generations": 4,
    "--max-new-tokens": 8,
    "--samples": 8,
    "--eval-steps": 2,
    "--score": "fraction",
}
NOUGHT = "def f(*arguments):\n    return 0"


@pytest.fixture(scope="module")
def recipe() -> Iterator[SimpleNamespace]:
    """The recipe's modules and those it borrows; they are no packages."""
    for needed in ("trl", "reasoning_gym", "tokenizers", "matplotlib", "rich"):
        pytest.importorskip(needed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(sys, "path", [*sys.path])  # the script puts its folders there, too
        sys.path[:0] = [str(RECIPES / "reasoning_gym"), str(RECIPES / "codevision")]
        modules = {name: importlib.import_module(name) for name in MODULES}
        spec = spec_from_file_location("codevision_train", RECIPES / "codevision" / "train.py")
        train = module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(train)  # type: ignore[union-attr]
        yield SimpleNamespace(**modules, train=train)
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture(scope="module")
def run(recipe: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One run: its metrics and folder, and what was learnt from, asked, rewarded and measured.

    The untrained model writes nothing that parses, so every completion counts as NOUGHT.
    """
    from logpi.integrations.trl import LogProbHead
    from logpi.rewards.code import reward

    seen = SimpleNamespace(learnt=[], rows=[], rewarded=[], measured=[], heads=0)
    out = tmp_path_factory.mktemp("results")

    def spy(owner: Any, name: str, record: Any) -> None:
        plain = getattr(owner, name)

        def spied(*args: Any, **named: Any) -> Any:
            record(args, named)
            return plain(*args, **named)

        patch.setattr(owner, name, spied)

    def count_head(*_: Any) -> None:
        seen.heads += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward, "extract_program", lambda *args, **named: NOUGHT)
        patch.setattr(recipe.warmup, "WINDOW", 2)
        patch.setattr(recipe.warmup, "COOLING", 1)
        patch.setattr(recipe.warmup, "CHUNK", 3)
        spy(recipe.model, "encode", lambda args, _: seen.learnt.extend(args[1]))
        spy(recipe.grpo, "train", lambda args, _: seen.rows.extend(args[3]))
        spy(recipe.judging, "measure", lambda args, _: seen.measured.append(args[2]))
        spy(LogProbHead, "apply", count_head)
        spy(
            recipe.judging.TimedReward,
            "__call__",
            lambda args, columns: seen.rewarded.append(columns or args),
        )
        seen.arguments = [str(part) for pair in (TINY | {"--out": out}).items() for part in pair]
        seen.metrics = recipe.train.main(seen.arguments)
    seen.out = out
    return seen


# ---- data ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def splits(recipe: SimpleNamespace, run: SimpleNamespace) -> Any:
    """Those of the run."""
    return recipe.charts.Splits(**json.loads((run.out / "seed0" / "splits.json").read_text()))


def test_no_function_is_in_two_splits(recipe: SimpleNamespace, splits: Any) -> None:
    charts = recipe.charts
    for same in (charts.structure, charts.behaviour):
        sets = [{same(e["answer"]) for e in getattr(splits, name)} for name in SPLITS]
        assert len(set.union(*sets)) == sum(map(len, sets)), same.__name__
    for name in SPLITS:
        entries = getattr(splits, name)
        assert len({e["answer"] for e in entries}) == len(entries) == 36
        difficulties = [e["difficulty"] for e in entries]
        assert all(difficulties.count(d) == 12 for d in ("easy", "medium", "hard"))


def test_structures_leave_out_numbers_and_comparisons(recipe: SimpleNamespace) -> None:
    of = recipe.charts.structure
    program = "def f(n):\n    if n % 12 == 3:\n        return n + 1\n    return n * 5"
    assert of(program) == of(program.replace("12 == 3", "7 >= 4").replace("* 5", "* 9"))
    assert of(program) != of(program.replace("n * 5", "n + 5"))


def test_behaviour_finds_one_function_in_two_programs(recipe: SimpleNamespace) -> None:
    of = recipe.charts.behaviour
    programs = ["def f(n):\n    return n * 2", "def f(n):\n    return n + n"]
    assert of(programs[0]) == of(programs[1]) != of("def f(n):\n    return n * 3")


def test_sizes_that_cannot_be_shared_out_raise(recipe: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="rl: expected a multiple of 36, got 40"):
        recipe.charts.splits(seed=0, heldout=36, rl=40)


def test_what_is_learnt_from_has_structures_of_its_own(
    recipe: SimpleNamespace, splits: Any
) -> None:
    from logpi.rewards.code.flowchart import flowchart

    charts = recipe.charts
    found, same, other = (
        list(islice(charts.to_learn_from(splits, seed=seed), 300)) for seed in (0, 0, 1)
    )
    assert found == same != other
    taken = {charts.structure(e["answer"]) for name in SPLITS for e in getattr(splits, name)}
    assert len(found) == 300
    assert taken.isdisjoint(charts.structure(e["answer"]) for e in found)
    assert all(e["question"] == flowchart(e["answer"]).mermaid() for e in found)
    assert len({e["answer"] for e in found}) > 0.98 * len(found)
    orbits = sum(" and t < " in e["answer"] for e in found)  # one structure of three is left
    assert orbits == pytest.approx(len(found) / 11, abs=1)


def test_slips_leave_programs_and_most_fail(recipe: SimpleNamespace, splits: Any) -> None:
    charts, entries = recipe.charts, splits.rl[::2]
    assert list(charts.with_slips(entries, 0.0, seed=0)) == entries
    half, same, other = (list(charts.with_slips(entries, 0.5, seed=seed)) for seed in (0, 0, 1))
    assert half == same != other
    changed = sum(a["answer"] != b["answer"] for a, b in zip(entries, half, strict=True))
    assert 0.3 < changed / len(entries) < 0.6
    draw = random.Random(0)
    texts = [charts.with_a_slip(e["answer"], draw) for e in entries]
    for text in texts:
        compile(text, "<slip>", "exec")
    assert recipe.judging.passed([e["answer"] for e in entries], entries) == [True] * len(entries)
    assert sum(recipe.judging.passed(texts, entries)) < 0.35 * len(entries)


def test_a_chart_and_its_program_are_cut_alike(recipe: SimpleNamespace, splits: Any) -> None:
    entries = islice(recipe.charts.to_learn_from(splits, seed=0), 500)
    texts = [recipe.tasks.prompt(e) + e["answer"] for e in entries]
    tokenizer = recipe.model.build_tokenizer(texts, 512, pieces=recipe.charts.PIECES)
    for entry in splits.heldout:
        chart, program = recipe.tasks.prompt(entry), entry["answer"]
        ids, answer = tokenizer(chart)["input_ids"], tokenizer(program)["input_ids"]
        assert tokenizer.decode(ids + answer) == chart + program
        assert tokenizer(chart + program)["input_ids"] == ids + answer
        assert len(ids + answer) < 150 < len(chart + program)
        wanted = re.findall(r"\b\d\b| [-+*/%<>=!]+ ", program)
        cut = [tokenizer.decode(one) for one in answer]
        for one in {*wanted}:  # each is one token
            assert cut.count(one) >= wanted.count(one)


# ---- the warm-up --------------------------------------------------------------------------------


def test_batches_of_like_length_hold_every_row_once(recipe: SimpleNamespace) -> None:
    torch.manual_seed(0)
    lengths = torch.randint(20, 90, (50,))
    batches = recipe.warmup._of_like_length(lengths, 8)
    assert len(set(batches.flatten().tolist())) == batches.numel() == 48
    spread = [(lengths[rows].max() - lengths[rows].min()).item() for rows in batches]
    assert max(spread) < 35


@pytest.mark.parametrize("reached", [3, None])
def test_the_warm_up_stops_by_its_loss(
    recipe: SimpleNamespace, reached: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of two losses is at the target after batch `reached`; four batches cool down."""
    warmup = recipe.warmup
    weight = torch.nn.Parameter(torch.ones(()))
    model = torch.nn.Module()
    model.register_parameter("weight", weight)
    rates: list[float] = []
    values = iter([5.0, 1.5, 2.5, *[9.0] * 20] if reached else [3.0] * 20)
    monkeypatch.setattr(warmup, "WINDOW", 2)
    monkeypatch.setattr(warmup, "COOLING", 4)
    monkeypatch.setattr(warmup, "_batches", lambda *_: iter([(None, None)] * 20))
    monkeypatch.setattr(recipe.model, "answer_loss", lambda *_: weight * 0 + next(values))
    step = torch.optim.AdamW.step

    def spied(self: Any, *args: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", spied)
    settings = warmup.WarmUpSettings(batch_size=1, learning_rate=1.0, target_loss=2.0, max_steps=6)
    if reached is None:
        with pytest.raises(RuntimeError, match=r"at most 2.0 within 6 steps, got 3.000"):
            warmup.warm_up(model, None, iter(()), settings)
        assert len(rates) == 6
    else:
        losses = warmup.warm_up(model, None, iter(()), settings)
        assert losses == [5.0, 1.5, 2.5, 9.0, 9.0, 9.0]
        assert rates == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


# ---- the reward ---------------------------------------------------------------------------------


def test_the_reward_is_the_sandboxs(recipe: SimpleNamespace, splits: Any) -> None:
    from logpi.rewards.code import Sandbox

    entries, draw = splits.rl[:9], random.Random(0)
    texts = [e["answer"] for e in entries[:3]]
    texts += [recipe.charts.with_a_slip(e["answer"], draw) for e in entries[3:8]]
    texts.append("def f(x: no program")
    reward = recipe.judging.TimedReward(recipe.judging.program_tests("fraction"))
    columns = {name: [e[name] for e in entries] for name in recipe.judging.COLUMNS}
    got = reward(completions=texts, prompts=[], **columns)
    with Sandbox(strict=False) as sandbox:
        runs = [sandbox.run(t, e["test"], "f") for t, e in zip(texts, entries, strict=True)]
    assert got == [run.fraction for run in runs[:8]] + [0.0]
    assert got[:3] == [1.0] * 3
    assert 0 < sum(got[3:]) < 5
    step: dict[str, Any] = {}
    reward.log(step)
    assert step["programs"] == step["different_programs"] == 9
    assert step["sandbox_seconds"] > 0
    reward.log(step)
    assert step == {"sandbox_seconds": 0, "programs": 0, "different_programs": 0}


# ---- a run --------------------------------------------------------------------------------------


def test_what_is_measured_was_never_learnt_from(recipe: SimpleNamespace, run: Any) -> None:
    of = recipe.charts.structure
    before, after = run.measured
    assert before == after
    held = {of(e["question"]) for e in before}
    learnt = {of(e["question"]) for e in run.learnt}
    assert held
    assert learnt
    assert (len(before), len(run.learnt), len(run.rows)) == (36, 3 * 12, 36)
    assert held.isdisjoint(learnt)
    assert held.isdisjoint(of(row["prompt"].strip()) for row in run.rows)
    assert not set(run.rows[0]) - {"prompt", *recipe.judging.COLUMNS}  # no solution among them
    tests = {test for e in before for test in e["test"]}
    asked = {test for row in run.rows for test in row["test"]}
    assert len(tests & asked) < 0.2 * len(tests)  # `f(0) == 0` is of many functions


def test_what_trl_maximises_is_what_the_sandbox_found(run: Any) -> None:
    """Every completion counted as NOUGHT: it passes the assertions that expect 0."""
    for step, columns in zip(run.metrics[0]["steps"], run.rewarded, strict=True):
        fractions = [sum(t.endswith(" == 0") for t in ts) / len(ts) for ts in columns["test"]]
        assert len(fractions) == 12
        assert step["reward"] == pytest.approx(sum(fractions) / 12, rel=1e-6)
        assert step["rewards/program_tests/mean"] == step["reward"]
        assert step["programs"] == 12
        assert 0 < step["sandbox_seconds"] < step["step_time"]
    assert any(step["reward"] > 0 for step in run.metrics[0]["steps"])
    assert run.heads == 2  # logpi's, once a step


def test_a_run_leaves_numbers_and_pictures(recipe: SimpleNamespace, run: Any, capsys: Any) -> None:
    (metrics,) = run.metrics
    for when in ("before", "after"):
        found = metrics[when]
        assert list(found["pass@8"]) == ["easy", "medium", "hard", "all"]
        assert len(found["num_correct"]) == 36
        value, low, high = found["pass@1"]["all"]
        assert low <= value <= high
        assert len(metrics["warmup_losses"]) == 2
    assert {f"heldout/{d}" for d in ("easy", "medium", "hard", "all")} < {*metrics["steps"][-1]}
    assert (run.out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert recipe.train.main(run.arguments) == run.metrics  # read, not repeated
    assert "| hard | 0 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"other settings \(steps 2 not 3\)"):
        recipe.train.main([*run.arguments, "--steps", "3"])


def test_pass_at_k_and_the_example(
    recipe: SimpleNamespace, splits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [e for i in range(2) for d in ("easy", "medium", "hard")
               for e in [[e for e in splits.heldout if e["difficulty"] == d][i]]]  # fmt: skip
    right = [e["answer"] for e in entries]

    def texts(model: Any, tokenizer: Any, asked: Any, *, max_new_tokens: int, samples: int = 0):
        torch.rand(1)
        if not samples:
            return [NOUGHT, *right[1:]] if model == "after" else [NOUGHT] * 6
        many = 4 if model == "after" else 2
        return [one if i < 3 and j < many else "" for i, one in enumerate(right) for j in range(8)]

    monkeypatch.setattr(recipe.judging, "_texts", texts)
    judging, how = recipe.judging, {"samples": 8, "max_new_tokens": 8, "seed": 0}
    state = torch.get_rng_state()
    assert judging.pass_at_1("before", None, entries, **how) == {
        "heldout/easy": 1 / 8, "heldout/medium": 1 / 8, "heldout/hard": 1 / 8, "heldout/all": 1 / 8,
    }  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state)
    before, after = (
        judging.measure(when, None, entries, ks=(1, 8), **how) for when in ("before", "after")
    )
    assert before["num_correct"] == [2, 2, 2, 0, 0, 0]
    assert before["pass@1"]["easy"][0] == pytest.approx((2 / 8 + 0) / 2)
    assert before["pass@8"]["hard"][0] == before["pass@8"]["all"][0] == 0.5
    assert after["greedy"] == {"easy": 0.5, "medium": 1.0, "hard": 1.0, "all": 5 / 6}
    run = {"seed": 3, "settings": {"samples": 8}, "before": before, "after": after}
    rows = recipe.figures.table([run, run]).split("\n")
    assert rows[2].startswith("| easy | 3 | 12% [")
    assert "→ 25% [" in rows[2]
    assert "| +12.5 ± 24.5 |" in rows[2]  # 1.96 of the standard error of (25, 0)
    assert rows[4].split(" | ")[2:] == ["**12%** → **25%**", "", "**50%** → **50%**",
                                        "**0%** → **50%** |"]  # fmt: skip
    shown = recipe.figures.example(run, entries, tmp_path)
    assert max((entries[i] for i in range(1, 6)), key=lambda e: len(e["answer"]))["answer"] in shown
    assert NOUGHT in shown
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
