"""The stages in miniature: they resume, their numbers can be computed again, any model plans."""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

for needed in ("SurvSet", "statsmodels", "networkx", "pandas", "jinja2", "matplotlib"):
    pytest.importorskip(needed)

FOLDER = Path(__file__).parents[2] / "recipes" / "proteus"
MODULES = ("cohorts", "planner", "system", "report", "run")
TINY = {"genes": 12, "each": 3, "rounds": 2, "fdr": 0.05}


@pytest.fixture(scope="module")
def recipe() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(FOLDER), *sys.path])  # the script adds to it, too
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name in MODULES:
        sys.modules.pop(name, None)


def _system(recipe: Any, folder: Path, planner: Any = None) -> Any:
    study = recipe.system.STUDIES["expression"]
    return recipe.system.System(study, planner or recipe.planner.scripted, folder, **TINY)


@pytest.fixture(scope="module")
def whole(recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return _system(recipe, tmp_path_factory.mktemp("whole")).run()


def test_the_graph_joins_everything(recipe: Any, whole: Any) -> None:
    kinds = {data["kind"] for _, data in whole.nodes(data=True)}
    assert kinds == {"entity", "direction", "tool", "result", "hypothesis"}
    found = recipe.report.counts(whole)
    assert 0 < found["replicated"] <= found["testable"] <= found["accepted"] <= found["hypotheses"]
    assert found["tests"] > found["hypotheses"]
    for name, data in whole.nodes(data=True):
        if data["kind"] == "hypothesis":
            before = {whole.nodes[n]["kind"] for n in whole.predecessors(name)}
            assert before == {"entity", "result"}
    claims = [recipe.report.claim(d) for _, d in whole.nodes(data=True) if d["kind"] == "hypothesis"
              and d["replicated"]]  # fmt: skip
    assert "ESR1 higher in er=1" in claims  # the receptor's gene: what any such system has to find


@pytest.mark.parametrize("step", ["directions-1", "results-2"])
def test_it_resumes(recipe: Any, whole: Any, tmp_path: Path, step: str) -> None:
    _system(recipe, tmp_path).run(stop_after=step)
    again = _system(recipe, tmp_path).run()
    assert dict(again.nodes(data=True)) == dict(whole.nodes(data=True))
    assert set(again.edges) == set(whole.edges)


def test_every_number_is_computed_again(recipe: Any, whole: Any) -> None:
    study = recipe.system.STUDIES["expression"]
    count = recipe.system.replay(whole, study)
    assert count > recipe.report.counts(whole)["tests"]
    changed = whole.copy()
    changed.nodes["result-3"]["p"] = 0.5 * changed.nodes["result-3"]["p"]
    with pytest.raises(ValueError, match="result-3: the number is not what the code computes"):
        recipe.system.replay(changed, study)
    other = whole.copy()
    other.graph["cohorts"] = {"gse1992": {"rows": 124, "sha256": "0" * 64}}
    with pytest.raises(ValueError, match="gse1992: the cohort is not the one that the run had"):
        recipe.system.replay(other, study)


def test_a_test_beyond_the_screen_is_counted(recipe: Any, tmp_path: Path) -> None:
    """A model proposes what no direction tried, in both directions: one test more."""
    beyond = {"entity_a": "ESR1", "relation": "correlates_with", "entity_b": "GATA3",
              "direction": "+", "test": "spearman"}  # fmt: skip
    untestable = {**beyond, "entity_b": "er"}

    def plan(stage: str, prompt: str, facts: dict[str, Any]) -> str:
        if stage == "directions":
            return str(recipe.planner.scripted(stage, prompt, {**facts, "round": 1}))
        return json.dumps([beyond, {**beyond, "direction": "-"}, untestable])

    graph = _system(recipe, tmp_path, plan).run()
    tests = {json.dumps(d["hypothesis"]) for _, d in graph.nodes(data=True)
             if d["kind"] == "result"}  # fmt: skip
    found = recipe.report.counts(graph)
    assert (found["tests"], found["hypotheses"]) == (len(tests) + 1, 3)
    assert [d["why_not"] != "" for _, d in graph.nodes(data=True) if d["kind"] == "hypothesis"] == [
        False, False, True]  # fmt: skip
    page = recipe.report.write({"expression": graph}, tmp_path, 0.05).read_text()
    assert "ESR1 rises with GATA3" in page


def test_the_report(recipe: Any, whole: Any, tmp_path: Path) -> None:
    page = recipe.report.write({"expression": whole}, tmp_path, 0.05).read_text()
    assert page.count("data:image/png;base64,") == 3
    for _, data in whole.nodes(data=True):
        if data["kind"] == "hypothesis":
            assert recipe.report.claim(data) in page
    assert "run_test(load(&#39;gse4335&#39;), Hypothesis(" in page
    for cohort in whole.graph["cohorts"].values():
        assert cohort["sha256"] in page


def test_a_run_keeps_its_settings(recipe: Any, tmp_path: Path) -> None:
    told = ["--study", "expression", "--genes", "8", "--rounds", "1", "--out", str(tmp_path)]
    recipe.run.main(told)
    assert (tmp_path / "report.html").exists()
    with pytest.raises(SystemExit, match="other settings"):
        recipe.run.main([*told, "--fdr", "0.1"])


def test_an_endpoint_plans(recipe: Any, tmp_path: Path) -> None:
    directions = [
        {"question": "?", "relation": "differs_by", "entity_b": "er=1", "test": "rank_sum"},
        {"question": "?", "relation": "differs_by", "entity_b": "er=1", "test": "anova"},
    ]
    claim = {"entity_a": "ESR1", "relation": "differs_by", "entity_b": "er=1", "direction": "+",
             "test": "rank_sum"}  # fmt: skip
    answers = {"directions": json.dumps(directions),
               "validate": "I think:\n```json\n" + json.dumps([claim, {"p": 0}])
               + "\n```"}  # fmt: skip
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, body["model"]))
            prompt = body["messages"][0]["content"]
            said = answers["validate" if "hypotheses to validate" in prompt else "directions"]
            told = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        graph = _system(recipe, tmp_path, recipe.planner.endpoint(url, "m")).run()
        server.shutdown()
    assert asked == [("/v1/chat/completions", "m")] * 4
    assert recipe.report.counts(graph)["replicated"] == 1
    assert len(graph.graph["malformed-1"]) == 1
    assert sum(data["kind"] == "refused" for _, data in graph.nodes(data=True)) == 2


@pytest.mark.parametrize("text", ["no idea", '[1, null, {"relation": 3}]'])
def test_a_planner_without_a_plan(recipe: Any, tmp_path: Path, text: str) -> None:
    graph = _system(recipe, tmp_path, lambda *_: text).run()
    assert recipe.report.counts(graph)["hypotheses"] == 0
    recipe.report.write({"expression": graph}, tmp_path, 0.05)


@pytest.mark.frameworks
def test_a_local_model_plans(recipe: Any, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=256, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                    num_attention_heads=1, max_position_embeddings=8192)
    ).save_pretrained(tmp_path)  # fmt: skip
    ask = recipe.planner.local(str(tmp_path), max_new_tokens=4)
    assert isinstance(ask("directions", "Propose directions.", {}), str)
