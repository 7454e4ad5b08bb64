"""The stages, and the one graph that joins what they make: saved after each, resumed from there."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from cohorts import STUDIES, Study, load
from planner import Planner

from logpi.rewards.hypothesis import (
    RELATIONS,
    Hypothesis,
    HypothesisReward,
    Table,
    forget,
    judge,
    read,
    run_test,
)

STAGES = ("exploration", "directions", "results", "hypotheses", "validation")


class System:
    """One study. Every number in the graph has the hypothesis and the cohort it came from."""

    def __init__(self, study: Study, planner: Planner, folder: Path, *, genes: int, each: int,
                 rounds: int, fdr: float) -> None:  # fmt: skip
        self.study, self.planner, self.path = study, planner, folder / f"{study.name}.json"
        self.genes, self.each, self.rounds, self.fdr = genes, each, rounds, fdr
        self.table: Table = load(study.discovery)
        self.graph: Any = nx.DiGraph(done=[])
        if self.path.exists():
            self.graph = nx.node_link_graph(json.loads(self.path.read_text()), edges="edges")

    def run(self, stop_after: str = "") -> Any:
        """Every stage that is not done; "directions-1" and so on are the names of the steps."""
        steps = ["exploration-1"]
        steps += [f"{s}-{r}" for r in range(1, self.rounds + 1) for s in STAGES[1:4]]
        for step in [*steps, "validation-1"]:
            if step not in self.graph.graph["done"]:
                stage, _, number = step.partition("-")
                getattr(self, f"_{stage}")(int(number))
                self.graph.graph["done"].append(step)
                self._save()
            if step == stop_after:
                break
        return self.graph

    def _save(self) -> None:
        text = json.dumps(nx.node_link_data(self.graph, edges="edges"), indent=1)
        partial = self.path.with_suffix(".partial")
        partial.write_text(text + "\n")
        partial.replace(self.path)  # whole, or not at all

    # ---- raw table -> entities: no outcome is looked at, so no test is spent --------------------

    def _exploration(self, number: int) -> None:
        table = self.table
        shared = load(self.study.held_out)
        self.graph.graph["cohorts"] = {
            name: {"rows": cohort.rows, "sha256": cohort.digest}
            for name, cohort in ((self.study.discovery, table), (self.study.held_out, shared))
        }
        spread = {
            name: float(np.nanstd(column))
            for name, column in table.numbers.items()
            if name in shared.numbers
        }
        clinical = {"age", "nodes", "progesterone", "estrogen", *_known_names(self.study)}
        widest = sorted(spread, key=lambda name: (name not in clinical, -spread[name]))
        for name in widest[: self.genes]:
            missing = int(np.isnan(table.numbers[name]).sum())
            self.graph.add_node(name, kind="entity", type="number", missing=missing)
        for name, levels in table.levels.items():
            if name in shared.levels:
                self.graph.add_node(name, kind="entity", type="class", levels=levels)
        for name in table.survival:
            self.graph.add_node(name, kind="entity", type="survival")

    # ---- -> research directions, and the tool of each -------------------------------------------

    def _directions(self, number: int) -> None:
        facts = {"round": number, "rows": self.table.rows,
                 "numbers": len(self._entities("number")),
                 "classes": {n: self.graph.nodes[n]["levels"] for n in self._entities("class")},
                 "hypotheses": [self.graph.nodes[n]["hypothesis"]
                                for n in self._nodes("hypothesis")]}  # fmt: skip
        text = self._ask("directions", number, facts, "Propose directions of research: JSON, a "
            'list of {"question", "relation", "entity_b", "test", "group"}; each is tried with '
            "every column as entity_a; a class is given as column=level.")  # fmt: skip
        for i, one in enumerate(_list(text)):
            try:  # well-formed, for some entity
                Hypothesis("any column", str(one["relation"]), str(one["entity_b"]), "+",
                           str(one["test"]), tuple(one.get("group") or ()))  # fmt: skip
            except (ValueError, KeyError, TypeError) as error:
                self.graph.add_node(f"refused-{number}-{i}", kind="refused", why=str(error))
                continue
            name = f"direction-{number}-{i}"
            keys = ("relation", "entity_b", "test", "group")
            self.graph.add_node(name, kind="direction", round=number,
                                question=str(one.get("question", ""))[:200],
                                **{key: one.get(key) or [] for key in keys})  # fmt: skip
            self.graph.add_node(one["test"], kind="tool", code=_code_of(one["test"]))
            self._join(str(one["entity_b"]).partition("=")[0], name)
            self._join(name, one["test"])

    # ---- tools -> results: every test that is made is there, the dull ones too ------------------

    def _results(self, number: int) -> None:
        for name in self._nodes("direction"):
            direction = self.graph.nodes[name]
            if direction["round"] != number:
                continue
            kinds = {"fisher": ("class",), "log_rank": ("class",), "cox": ("number",)}
            for kind in kinds.get(direction["test"], ("number",)):
                for entity in self._entities(kind):
                    levels = self.graph.nodes[entity].get("levels")
                    self._result(name, f"{entity}={levels[-1]}" if levels else entity)

    def _result(self, name: str, entity: str) -> None:
        direction = self.graph.nodes[name]
        try:
            h = Hypothesis(entity, direction["relation"], direction["entity_b"], "+",
                           direction["test"], tuple(direction["group"]))  # fmt: skip
            found = run_test(self.table, h)
        except ValueError:  # the same column twice, or Untestable
            return
        node = f"result-{len(self._nodes('result'))}"
        self.graph.add_node(node, kind="result", cohort=self.study.discovery,
                            hypothesis=h.as_json(), **_numbers(found))  # fmt: skip
        self.graph.add_edge(direction["test"], node)
        self.graph.add_edge(name, node)
        self.graph.add_edge(entity.partition("=")[0], node)

    # ---- results -> hypotheses ------------------------------------------------------------------

    def _hypotheses(self, number: int) -> None:
        results = [self.graph.nodes[name] for name in self._nodes("result")]
        results.sort(key=lambda one: one["p"])
        facts = {"each": self.each, "results": [dict(one) for one in results]}
        shown = {"results": facts["results"][:40]}
        relations = {name: {"+": plus, "tests": tests} for name, (plus, tests) in RELATIONS.items()}
        text = self._ask("hypotheses", number, facts, "Propose hypotheses to validate: JSON, a "
            'list of {"entity_a", "relation", "entity_b", "direction", "test", "group"}. '
            f"{json.dumps(relations)}", shown)  # fmt: skip
        reading = read(text)
        self.graph.graph[f"malformed-{number}"] = reading.malformed
        known = {json.dumps(self.graph.nodes[n]["hypothesis"]) for n in self._nodes("hypothesis")}
        for h in dict.fromkeys(reading.hypotheses):
            if json.dumps(h.as_json()) in known:
                continue
            node = f"hypothesis-{len(self._nodes('hypothesis'))}"
            self.graph.add_node(node, kind="hypothesis", hypothesis=h.as_json())
            for entity in h.columns:
                self._join(entity, node)
            for name in self._nodes("result"):
                told = self.graph.nodes[name]["hypothesis"]
                if {**told, "direction": h.direction} == h.as_json():
                    self.graph.add_edge(name, node)

    # ---- -> external validation: one rate over every test of the run ----------------------------

    def _validation(self, number: int) -> None:
        names = self._nodes("hypothesis")
        held_out = load(self.study.held_out)
        earlier = [_hypothesis(self.graph.nodes[name]) for name in self._nodes("result")]
        verdicts = judge([_hypothesis(self.graph.nodes[name]) for name in names], self.table,
                         held_out=held_out, known=self.study.known, fdr=self.fdr,
                         earlier=earlier)  # fmt: skip
        reward = HypothesisReward(self.table, held_out=held_out, known=self.study.known,
                                  fdr=self.fdr, cost=max(0.05, self.fdr))  # fmt: skip
        for name, v in zip(names, verdicts, strict=True):
            self.graph.nodes[name].update(
                why_not=v.why_not, q=v.q, accepted=v.accepted, replicated=v.replicated,
                held_out_q=v.held_out_q, novelty=v.novelty, gain=reward.gain(v),
                discovery=v.result and _numbers(v.result),
                held_out=v.held_out and _numbers(v.held_out))  # fmt: skip
        proposed = [v.hypothesis for v in verdicts if v.result]  # a model may go beyond the screen
        made = {replace(h, direction="+") for h in (*earlier, *proposed)}
        self.graph.graph["tests"] = len(made)

    # ---- what the stages share ------------------------------------------------------------------

    def _ask(self, stage: str, number: int, facts: dict[str, Any], task: str,
             shown: dict[str, Any] | None = None) -> str:  # fmt: skip
        prompt = f"{self.study.note}\n{json.dumps(shown or facts)}\n{task}"
        text = self.planner(stage, prompt, facts)
        self.graph.graph[f"answer-{stage}-{number}"] = text[:20_000]
        return text

    def _join(self, a: str, b: str) -> None:
        if a in self.graph and b in self.graph:
            self.graph.add_edge(a, b)

    def _nodes(self, kind: str) -> list[str]:
        return [name for name, data in self.graph.nodes(data=True) if data["kind"] == kind]

    def _entities(self, kind: str) -> list[str]:
        return [n for n in self._nodes("entity") if self.graph.nodes[n]["type"] == kind]


def replay(graph: Any, study: Study) -> int:
    """Computes every result of the graph again, from hypothesis and cohort; returns how many."""
    forget()  # or it would only be looked up
    for cohort, told in graph.graph["cohorts"].items():
        if load(cohort).digest != told["sha256"]:
            raise ValueError(f"{cohort}: the cohort is not the one that the run had")
    count = 0
    for name, data in graph.nodes(data=True):
        found = [(data, study.discovery)] if data["kind"] == "result" else []
        if data["kind"] == "hypothesis":
            found = [(data["discovery"], study.discovery), (data["held_out"], study.held_out)]
        for numbers, cohort in found:
            if numbers is not None:
                again = _numbers(run_test(load(cohort), _hypothesis(data)))
                if any(numbers[key] != value for key, value in again.items()):
                    raise ValueError(f"{name}: the number is not what the code computes: {again}")
                count += 1
    return count


def _hypothesis(node: dict[str, Any]) -> Hypothesis:
    told = node["hypothesis"]
    return Hypothesis(**{**told, "group": tuple(told["group"])})


def _numbers(result: Any) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v
            for k, v in result._asdict().items()}  # fmt: skip


def _code_of(test: str) -> str:
    inside = {"cox": "survival", "log_rank": "survival"}.get(test, test)
    return f"logpi/rewards/hypothesis/statistics.py: _{inside}"


def _known_names(study: Study) -> set[str]:
    return {name for pair in study.known for name in pair}


def _list(text: str) -> list[dict[str, Any]]:
    start, end = text.find("["), text.rfind("]")
    try:
        found = json.loads(text[start : end + 1])
    except (ValueError, RecursionError):
        return []
    return [one for one in found if isinstance(one, dict)][:20] if isinstance(found, list) else []


__all__ = ["STUDIES", "System", "replay"]
