"""The benchmark of the head: each row is judged by what it was asked, beside its own products."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is not installed

from benchmarks import devices, report, run
from benchmarks.harness import TOTAL, Provider
from benchmarks.ops import _linear_peers as peers
from benchmarks.ops import linear_log_probs as op
from benchmarks.shapes import LINEAR_SHAPES, Shape, named


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(devices, "CACHE_BYTES", 1 << 10)  # nothing here needs a cold cache
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # nor a second thread to wait for
    yield
    torch.set_num_threads(threads)


def refusing(*_: Any) -> None:
    raise RuntimeError("it is not installed")


TINY = Shape("tiny", 70, 300, hidden=24)
MODES = ("half masked", "half without gradient", "256 columns")


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for name in ("trl_chunked", "cce_compiled"):  # one takes seconds to import, one to compile
        monkeypatch.setattr(peers, name, peers.full_logits)
    monkeypatch.setattr(peers, "liger_grpo", refusing)
    shapes = [TINY, Shape("memory/64", 64, 300, hidden=24)]
    return run.measure("linear_log_probs", shapes, ["float32", "bfloat16"], "cpu", 0.0)


def test_linear_log_probs_end_to_end(
    result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    table = result["rows"]
    assert {(r["group"], r["model"]) for r in table} == {
        ("forward", "tiny"),
        ("training", "tiny"),
        ("training", "memory/64"),
    }
    ran = [row for row in table if row["refusal"] is None]
    judged = [row for row in ran if row["max_error"] is not None]
    for row in judged:  # what is masked, sliced or unweighted is told apart from what is not
        assert row["max_error"] < (1e-4 if row["dtype"] == "float32" else 0.15), row
    for mode in MODES:
        assert any(mode in row["provider"] for row in judged)
    assert all(row["gb_s"] is None for row in table)  # bytes say nothing of products
    beside = {name for row in ran for name, value in row["beside"].items() if value is not None}
    serving = op._row()
    assert beside == {
        "GEMM",
        "4 GEMMs",
        "3 GEMMs",
        f"logpi {serving}",
        f"logpi {serving}, recompute",
    }
    both_ways = [r for r in ran if r["pass"] == TOTAL and r["peak_bytes"] is not None]
    assert all(0 <= r["beyond_bytes"] <= r["peak_bytes"] for r in both_ways)
    assert any(row["provider"] == "logpi linear_policy_loss" for row in judged)

    report.show(result | {"tests": "green"})
    shown, page = capsys.readouterr().out, report.markdown(result | {"tests": "green"})
    assert "GB/s" not in shown
    assert all(text in page for text in ("x 4 GEMMs", "x GEMM", " MiB", "(log p only)"))
    titles = [title for title, _ in report.sections(table)]
    assert len(titles) == len(set(titles))
    for title, members in report.sections(table):  # the products of that pass, and of no other
        passes = {row["pass"] for row in members}
        assert len(passes) == 1, title


@pytest.mark.parametrize("wrong", ["log p", "H", "grad"])
def test_an_error_of_each_result_is_seen(wrong: str) -> None:
    case = op.Case(TINY, torch.float32, "cpu")
    form = op.Form("peer", peers.full_logits)
    forward, training = op._forward(case, [form]), op._training(case, [form])
    one, both = forward.providers[-1], training.providers[-1]

    def run_stages(provider: Provider) -> list[torch.Tensor]:
        state = None
        for stage in provider.stages.values():
            state = stage(state)
        return list(state)

    provider = both if wrong == "grad" else one
    for at in (0, 1) if wrong == "grad" else (("log p", "H").index(wrong),):
        result = run_stages(provider)
        assert case.error(provider, result) < 1e-4
        result[at] = result[at] + 0.01
        assert case.error(provider, result) > 0.009


def test_a_long_product_leaves_most_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "LONG", 0)
    case = op.Case(TINY, torch.bfloat16, "cpu")
    forward, training = op.groups(case)
    assert len(forward.providers) <= 5
    assert [p.role for p in training.providers] == ["reference", "ours", "peer", "peer"]
    assert not op.groups(op.Case(TINY, torch.float32, "cpu"))


def test_a_slow_peer_has_one_round_and_ours_as_many_as_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(op, "SLOW", 0)
    for group in op.groups(op.Case(TINY, torch.float32, "cpu")):
        assert {p.rounds for p in group.providers if p.role == "peer"} == {1}
        assert {p.rounds for p in group.providers if p.role != "peer"} == {None}


def test_every_way_is_measured_where_a_target_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    case = op.Case(TINY, torch.float32, "cpu")
    assert len(op._ours_forward(case)) > 1
    monkeypatch.setitem(op.SHAPES, "cpu", (TINY,))  # a named shape of which no target asks
    assert len(op._ours_forward(case)) == 1
    assert [form.name.split(", ")[1] for form in op._ours_backward(case)] == ["recompute", "retain"]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_target_of_the_head_can_be_measured(kind: str) -> None:
    shapes = {str(shape) for shape in LINEAR_SHAPES[kind]}
    assert {target.shape for target in op.TARGETS[kind]} <= shapes
    assert {named(n, LINEAR_SHAPES) for n in op.QUICK[kind]} <= set(LINEAR_SHAPES[kind])
    case = op.Case(TINY, torch.float32, "cpu")
    groups = {(group.name, group.buffers): group.providers for group in op.groups(case)}
    for target in op.TARGETS[kind]:
        passes = "forward" if target.where[0] == "forward" else "training"
        providers = groups[passes, target.where[1]]
        ours = next(p for p in providers if p.role == "ours" and target.ours in p.name)
        if target.metric == "beside":
            assert any(name.startswith(target.against or "") for name in ours.beside)
            assert set(ours.beside) <= {p.name for p in providers}


@pytest.mark.frameworks
def test_trls_chunked_function_gives_the_same_numbers() -> None:
    pytest.importorskip("trl")
    case = op.Case(TINY, torch.float32, "cpu")
    given = case.hidden, case.weight, case.token_ids
    found, truth = peers.trl_chunked(*given), peers.full_logits(*given)
    for value, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(value, expected)


def test_a_case_that_is_left_out_costs_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """It once ended the run that it was spared in, and every number with it."""
    monkeypatch.setattr(op, "groups", lambda _: [])
    assert run.measure("linear_log_probs", [TINY], ["float32"], "cpu", 0.0)["rows"] == []
