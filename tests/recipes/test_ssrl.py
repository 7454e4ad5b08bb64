"""SSRL in miniature: what is held out, who wrote which token, whose information, resumed runs."""

from __future__ import annotations

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

from logpi.rewards import SelfSearch
from logpi.rewards.information import LocalIndex, RealSearch

for _needed in ("countryinfo", "bm25s", "reasoning_gym", "transformers", "tokenizers",
                "matplotlib", "rich"):  # fmt: skip
    pytest.importorskip(_needed, reason=f"{_needed} is not installed: pip install logpi[recipes]")

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(transformers|accelerate)\b.*"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning:(transformers|accelerate)\b.*"),
]

RECIPES = Path(__file__).parents[2] / "recipes"
OURS = ("facts", "memory", "rollout", "grpo", "evaluation", "summary")
THEIRS = ("countdown", "tasks", "model", "runs")  # of reasoning_gym
TINY = {
    "--seeds": 0,
    "--countries": 20,
    "--heldout": 6,
    "--hidden-size": 32,
    "--layers": 1,
    "--warmup-steps": 20,
    "--documents-per-step": 16,
    "--demonstrations-per-step": 8,
    "--made-up-per-step": 4,
    "--steps": 4,
    "--eval-every": 2,
    "--questions-per-step": 4,
    "--num-generations": 4,
    "--learning-rate": 1e-3,
    "--max-new-tokens": 24,
}


@pytest.fixture(scope="module")
def recipe() -> Iterator[SimpleNamespace]:
    """The modules of the recipe and of the one it stands on, which are no packages."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these models are too small for two
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(sys, "path", [*sys.path])  # the script puts its folders there, too
        sys.path[:0] = [str(RECIPES / "ssrl"), str(RECIPES / "reasoning_gym")]
        modules = {name: importlib.import_module(name) for name in OURS + THEIRS}
        spec = spec_from_file_location("ssrl_train", RECIPES / "ssrl" / "train.py")
        assert spec is not None
        assert spec.loader is not None
        script = module_from_spec(spec)
        spec.loader.exec_module(script)
        yield SimpleNamespace(**modules, script=script)
    for name in OURS + THEIRS:
        del sys.modules[name]
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def known(recipe: SimpleNamespace) -> Any:
    return _facts(recipe)


def _facts(recipe: SimpleNamespace, limit: int | None = None, seed: int = 0) -> Any:
    return recipe.facts.load(
        seed=seed, warmup_fraction=0.4, rl_fraction=0.3, popularity=0.15, limit=limit
    )


# ---- facts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_no_heldout_country_is_asked_about_in_training(recipe: SimpleNamespace, seed: int) -> None:
    facts = _facts(recipe, seed=seed)
    about = [{q.country for q in part} for part in (facts.warmup, facts.rl, facts.heldout)]
    assert sum(map(len, about)) == len(set.union(*about)) == len(facts.countries) > 200
    shown = recipe.facts.demonstrations(facts.warmup, {"all searches": 1.0}, seed=seed)
    heldout = {q.text for q in facts.heldout} | {p for q in facts.heldout for _, p in q.steps}
    trained = {q.text for q in facts.rl} | {q.text for q, _ in shown}
    trained |= {q.text for q in facts.made_up}
    trained |= {p for q, _ in shown for _, p in q.steps}
    assert heldout.isdisjoint(trained)
    assert {q.hops for q in facts.heldout} == {1, 2}


def test_every_fact_is_a_passage_and_a_rare_country_is_met_less(known: Any) -> None:
    passages = set(known.passages)
    assert len(passages) == len(known.passages) == len(known.weights)
    for question in known.warmup + known.rl + known.heldout:
        assert {passage for _, passage in question.steps} <= passages
    met = dict(zip(known.passages, known.weights, strict=True))
    assert (
        met["The capital of India is New Delhi ."] > 2 * met["The capital of Palau is Ngerulmud ."]
    )


def test_a_key_leads_to_one_country(known: Any) -> None:
    asked = [q for q in known.warmup + known.rl + known.heldout if q.hops == 1]
    assert len({q.text for q in asked}) == len(asked)
    assert not any("capital Kingston" in q.text for q in asked)  # Jamaica's and Norfolk Island's


def test_the_index_answers_the_queries(known: Any) -> None:
    """As far as BM25 goes: it prefers short passages, and those with a word twice (Kuwait City)."""
    search = LocalIndex(known.passages)
    steps = [step for question in known.heldout[::10] for step in question.steps]
    found = [search(query, 1) == [passage] for query, passage in steps]
    assert len(steps) > 100
    assert 0.85 * len(found) < sum(found) < len(found)


@pytest.mark.parametrize(("strategy", "form"), [("from memory", 0.5), ("all searches", 1.0)])
def test_demonstrations_are_right_and_in_form(
    recipe: SimpleNamespace, known: Any, strategy: str, form: float
) -> None:
    shown = recipe.facts.demonstrations(known.warmup[:200], {strategy: 1.0}, seed=0)
    found = SelfSearch().details([text for _, text in shown], answer=[q.answer for q, _ in shown])
    assert found.metrics["em"] == 1.0
    assert found.metrics["format"] == form
    searches = [q.hops if strategy == "all searches" else 0 for q, _ in shown]
    assert found.parts["searches"] == searches


def test_made_up_countries_are_read_not_learnt(
    recipe: SimpleNamespace, known: Any, words: Any
) -> None:
    """Their facts are false, and no false fact is in the loss; what is asked and answered is."""
    told = [passage for question in known.made_up for _, passage in question.steps]
    assert sum(passage in set(known.passages) for passage in told) < 0.2 * len(told)
    question = next(q for q in known.made_up if q.hops == 2)
    ids = words.encode(recipe.facts.completion(question, 2))
    kept = [i for i, learnt in zip(ids, words.information_mask(ids), strict=True) if learnt]
    assert words.decode(kept) == (
        f"<think> I need the country . </think> <search> {question.steps[0][0]} </search> "
        f"<think> I need the {question.steps[1][0].partition(' of ')[0]} . </think> "
        f"<search> {question.steps[1][0]} </search> <think> I have found it . </think> "
        f"<answer> {question.answer} </answer>"
    )
    model, row = _model(recipe, words), (words.encode(question.text), ids)
    for masked, count in ((False, len(ids) + 1), (True, len(kept) + 1)):
        assert recipe.memory._sum(words, model, [row], masked)[1] == count


# ---- rollouts -----------------------------------------------------------------------------------


class Scripted:
    """A model that writes given texts; what stands there without its doing it passes over.

    Args:
        sureness: of each row, by how much the logit of the next word exceeds the others, as a
            function of the number of searches begun.
    """

    training = False

    def __init__(self, words: Any, texts: Sequence[str], sureness: Any = lambda searches: 20.0):
        self.words, self.sureness = words, sureness
        self.scripts = [[*words.encode(text), words.END] for text in texts]
        self.places = [0] * len(texts)
        self.lm_head = SimpleNamespace(weight=torch.eye(len(words)))

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...

    def model(self, ids: Any, *, past_key_values: Any, **_: Any) -> Any:
        hidden = torch.zeros(len(ids), 1, len(self.words))
        for row, script in enumerate(self.scripts):
            at = self.places[row]
            if past_key_values and at < len(script) and ids[row, -1] == script[at]:
                self.places[row] += 1
            at = min(self.places[row], len(script) - 1)
            begun = script[:at].count(self.words.ids["<search>"])
            hidden[row, 0, script[at]] = self.sureness(begun)
        return SimpleNamespace(last_hidden_state=hidden, past_key_values=True)


SCRIPT = (
    "<think> I need the country . </think> <search> country with the capital Kabul </search> "
    "{first} <think> I need the currency . </think> <search> currency of Afghanistan </search> "
    "{second} <think> I have found it . </think> <answer> AFN </answer>"
)
WRITTEN = "<information> The currency of Afghanistan is EUR . </information>"
FOUND = (
    "<information> The country with the capital Kabul is Afghanistan . </information>",
    "<information> The currency of Afghanistan is AFN . </information>",
)


@pytest.fixture(scope="module")
def words(recipe: SimpleNamespace, known: Any) -> Any:
    shown = recipe.facts.demonstrations(known.warmup, {"all searches": 1.0}, seed=0)
    return recipe.memory.vocabulary(known, shown)


@pytest.fixture(scope="module")
def engine(known: Any) -> RealSearch:
    return RealSearch(LocalIndex(known.passages), top_k=1)


def _scripted(
    recipe: SimpleNamespace, words: Any, information: str, engine: Any, **how: Any
) -> Any:
    dictated = information == "index"
    own = "" if dictated else WRITTEN
    text = SCRIPT.format(first=how.pop("first", own), second=how.pop("second", own))
    model = Scripted(words, [text, "<answer> AFN </answer>"], **how)
    return recipe.rollout.roll_out(
        model, words, ["What is the currency of Afghanistan ?"] * 2, max_new_tokens=80,
        information=information, engine=engine, greedy=True,
    )  # fmt: skip


def test_from_memory_every_token_is_the_models(recipe: SimpleNamespace, words: Any) -> None:
    found = _scripted(recipe, words, "memory", None)
    assert found.texts[0] == SCRIPT.format(first=WRITTEN, second=WRITTEN)
    assert (found.drawn == found.attended).all()
    assert found.attended.sum(1).tolist() == [len(found.texts[0].split()) + 1, 4]
    assert (found.searches, found.asked) == ([2, 0], [0, 0])


def test_the_index_dictates_what_it_finds(
    recipe: SimpleNamespace, words: Any, engine: RealSearch
) -> None:
    found = _scripted(recipe, words, "index", engine)
    assert found.texts[0] == SCRIPT.format(first=FOUND[0], second=FOUND[1])
    assert (found.searches, found.asked) == ([2, 0], [2, 0])
    ids = torch.tensor(words.encode(" ".join(FOUND)))
    assert (found.token_ids[found.attended & ~found.drawn] == ids).all()
    assert (found.log_probs[~found.drawn] == 0).all()


@pytest.mark.parametrize(("second", "asked"), [(30.0, 1), (10.0, 2)])
def test_the_index_is_asked_where_the_model_grew_less_certain(
    recipe: SimpleNamespace, words: Any, engine: RealSearch, second: float, asked: int
) -> None:
    told = FOUND[1] if asked == 1 else ""
    found = _scripted(
        recipe, words, "guided", engine, first="", second=told,
        sureness=lambda begun: second if begun > 1 else 20.0,
    )  # fmt: skip
    assert found.asked == [asked, 0]
    assert found.texts[0] == SCRIPT.format(first=FOUND[0], second=FOUND[1])
    block = len(FOUND[1].split())
    assert (found.attended & ~found.drawn).sum() == len(FOUND[0].split()) + block * (asked - 1)


def test_a_source_needs_its_engine(recipe: SimpleNamespace, words: Any, engine: RealSearch) -> None:
    for information, given in (("memory", engine), ("index", None), ("web", engine)):
        with pytest.raises(ValueError, match=r"^(engine|information): expected"):
            _scripted(recipe, words, information, given)


# ---- learning -----------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [True, False])
def test_what_is_learnt_from(
    recipe: SimpleNamespace, words: Any, engine: RealSearch, masked: bool
) -> None:
    """Never what the index dictated; of the model's own information, what the switch says."""
    found = _scripted(recipe, words, "memory", None)
    mask = recipe.grpo.loss_mask(found, words, mask_information=masked)
    kept = words.decode(found.token_ids[0][mask[0]].tolist())
    block = "" if masked else WRITTEN
    assert kept.split() == SCRIPT.format(first=block, second=block).split()
    assert mask[0].sum() == len(kept.split()) + 1  # and the end
    assert mask[1].sum() == 4
    found = _scripted(recipe, words, "index", engine)
    mask = recipe.grpo.loss_mask(found, words, mask_information=masked)
    assert (
        words.decode(found.token_ids[0][mask[0]].tolist()).split()
        == SCRIPT.format(first="", second="").split()
    )


def _told(recipe: SimpleNamespace, **changed: Any) -> Any:
    told: dict[str, Any] = {
        "seed": 0, "steps": 4, "questions_per_step": 4, "num_generations": 8, "mini_batches": 1,
        "learning_rate": 1e-2, "max_new_tokens": 4, "information": "memory",
        "mask_information": True,
    }  # fmt: skip
    return recipe.grpo.GRPOSettings(**(told | changed))


def _model(recipe: SimpleNamespace, words: Any) -> Any:
    torch.manual_seed(0)
    return recipe.model.build_model(words, hidden_size=32, num_layers=1, vocab_size=len(words))


def test_the_policy_that_learns_is_the_one_that_wrote(
    recipe: SimpleNamespace, known: Any, words: Any
) -> None:
    """Before the update every ratio is 1: questions of several lengths, completions of several."""
    model = _model(recipe, words).double()
    asked = [question.text for question in known.rl[:12]]
    assert len({len(text.split()) for text in asked}) > 2
    found = recipe.rollout.roll_out(model, words, asked, max_new_tokens=12, seed=1, step=2)
    scored = recipe.grpo.scored(model, found, found.drawn)
    kept = found.log_probs.double()  # rounded once, to float32
    torch.testing.assert_close(scored.detach(), kept, rtol=2**-24, atol=1e-12)
    again = recipe.rollout.roll_out(model, words, asked, max_new_tokens=12, seed=1, step=2)
    other = recipe.rollout.roll_out(model, words, asked, max_new_tokens=12, seed=1, step=3)
    assert (again.token_ids == found.token_ids).all()
    assert (other.token_ids != found.token_ids).any()


def test_what_is_rewarded_comes_more_often(
    recipe: SimpleNamespace, known: Any, words: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def details(texts: list[str], **_: Any) -> Any:
        rewards = [sum(len(word) == 3 for word in text.split()) / 4 for text in texts]
        return SimpleNamespace(rewards=rewards, metrics={})

    monkeypatch.setattr(recipe.grpo, "REWARD", SimpleNamespace(details=details))
    model, told = _model(recipe, words), _told(recipe, questions_per_step=16, learning_rate=3e-2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=told.learning_rate)
    log = [
        recipe.grpo.step(model, optimizer, words, known.rl, told, None, number=i) for i in range(8)
    ]
    assert log[-1]["reward"] > log[0]["reward"] + 0.2


# ---- runs ---------------------------------------------------------------------------------------


def _arguments(out: Path, *more: str) -> list[str]:
    return ["--out", str(out), *(str(part) for option in TINY.items() for part in option), *more]


@pytest.fixture(scope="module")
def runs(recipe: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    out = tmp_path_factory.mktemp("results") / "run"
    asked = "--variant", "ssrl", "index"
    return SimpleNamespace(results=recipe.script.main(_arguments(out, *asked)), out=out)


def test_a_run_is_measured_everywhere(recipe: SimpleNamespace, runs: SimpleNamespace) -> None:
    assert list(runs.results) == ["ssrl", "index"]
    for variant, (metrics,) in runs.results.items():
        path = runs.out / "seed0" / variant / "metrics.json"
        assert metrics == json.loads(path.read_text())
        for model in ("before", "after"):
            for source in (*recipe.rollout.INFORMATION, "sampled"):
                assert set(metrics[model][source]) == {"1", "2"}
        assert [s["step"] for s in metrics["steps"] if "heldout" in s] == [2, 4]
        last, after = metrics["steps"][-1], metrics["after"]
        assert (last["heldout"], last["sampled"]) == (after["memory"], after["sampled"])
        assert metrics["heldout"] == {"1": 6, "2": 6}
    assert runs.results["ssrl"][0]["before"] == runs.results["index"][0]["before"]
    assert (runs.out / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_run_goes_on_with_the_numbers_of_an_uncut_one(
    recipe: SimpleNamespace,
    runs: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = recipe.grpo.step

    def cut(*given: Any, number: int) -> Any:
        if number == 3:
            raise KeyboardInterrupt
        return step(*given, number=number)

    monkeypatch.setattr(recipe.grpo, "step", cut)
    with pytest.raises(KeyboardInterrupt):
        recipe.script.main(_arguments(tmp_path / "run"))
    monkeypatch.setattr(recipe.grpo, "step", step)
    (metrics,) = recipe.script.main(_arguments(tmp_path / "run"))["ssrl"]
    (uncut,) = runs.results["ssrl"]
    assert metrics["after"] == uncut["after"]
    for one, other in zip(metrics["steps"], uncut["steps"], strict=True):
        assert {**one, "cpu_seconds": 0} == {**other, "cpu_seconds": 0}


def test_a_finished_run_is_read_and_another_setting_refused(
    recipe: SimpleNamespace, runs: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe.script.main(_arguments(runs.out)) == {"ssrl": runs.results["ssrl"]}
    said = capsys.readouterr().out
    assert "| ssrl | self-search |" in said
    assert "| ssrl | 0 |" in said
    with pytest.raises(SystemExit, match="top_k 1 not 2"):
        recipe.script.main(_arguments(runs.out, "--top-k", "2"))


def test_the_table_has_means_and_deviations(recipe: SimpleNamespace) -> None:
    def run(seed: int, em: float) -> dict[str, Any]:
        one = dict.fromkeys(("f1", "searches", "asked", "untrue"), 0.0)
        sources = *recipe.rollout.INFORMATION, "sampled"
        found = {s: {h: {**one, "em": em} for h in "12"} for s in sources}
        return {"seed": seed, "before": found, "after": found}

    lines = recipe.summary.table({"ssrl": [run(0, 0.2), run(1, 0.4)]}).splitlines()
    assert len(lines) == 2 + 2 * 4
    assert all("| 0.30 ± 0.14 | 0.30 ± 0.14 | 0.00 ± 0.00 |" in line for line in lines[2:])
