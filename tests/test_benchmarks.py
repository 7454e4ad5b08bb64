"""The benchmark harness: what it times is what it says."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is not installed

from benchmarks import devices, report, run
from benchmarks.devices import Cpu, device_of, reads
from benchmarks.harness import TOTAL, Group, Provider, alternate, paired_ratio, rows, spread
from benchmarks.ops import _peers as peers
from benchmarks.ops import token_log_probs as op
from benchmarks.shapes import LINEAR_SHAPES, QUICK, SHAPES, Shape, named
from benchmarks.targets import Target


class Clock:
    """A device on which time passes only when a provider says so."""

    name = "clock"
    kind = "cpu"
    memory_method = "none"

    def __init__(self) -> None:
        self.now, self.trace, self.steps = 0.0, [], []

    def takes(self, name: str, *durations: float) -> Callable[[Any], str]:
        times = itertools.cycle(durations)

        def work(_: Any) -> str:
            self.trace.append(name)
            self.now += next(times)
            return name

        return work

    def stamp(self) -> float:
        return self.now

    def elapsed_ns(self, start: float, end: float) -> float:
        return end - start

    def synchronise(self) -> None:
        self.steps.append("synchronise")

    def flush(self) -> None:
        self.steps.append("flush")

    def release(self) -> None: ...

    def free_bytes(self) -> int:
        return 1000

    def peak_bytes(self, work: Callable[[], Any]) -> tuple[Any, int]:
        return work(), 7


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(devices, "CACHE_BYTES", 1 << 10)  # nothing here needs a cold cache
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # nor a second thread to wait for
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def provider(clock: Clock, name: str, *durations: float, role: str = "peer") -> Provider:
    return Provider(name, {"forward": clock.takes(name, *durations)}, role=role)


def test_providers_take_turns_and_the_first_place_rotates(clock: Clock) -> None:
    providers = [provider(clock, name, 10.0) for name in "ABC"]
    alternate(providers, clock, budget_s=0.0, max_rounds=4)
    assert "".join(clock.trace) == "AABBCC" + "ABC" + "BCA" + "CAB" + "ABC"  # rehearsals first


def test_a_slow_peer_sits_rounds_out_but_not_all_at_one_end(clock: Clock) -> None:
    slow, fast = provider(clock, "S", 2e9), provider(clock, "F", 1e7)
    records = alternate([slow, fast], clock, budget_s=0.4)
    assert sorted(records[1].times["forward"]) == list(range(20))
    assert sorted(records[0].times["forward"]) == [7, 15]


def test_any_two_meet_in_all_the_rounds_of_whoever_has_fewer(clock: Clock) -> None:
    costs = (1e6, 4e6, 3e7, 7e7, 1.5e8, 4e8, 2e9, 9e9)
    records = alternate([provider(clock, f"{c:g}", c) for c in costs], clock, budget_s=1.0)
    seen = [set(record.times["forward"]) for record in records]
    least = (40, 30, 15, 15, 15, 5, 2, 1)
    assert [len(rounds) >= n for rounds, n in zip(seen, least, strict=True)] == [True] * len(costs)
    assert all(a >= b for a, b in itertools.pairwise(seen))


def test_a_provider_may_say_how_few_rounds_will_do(clock: Clock) -> None:
    few = Provider("few", {"forward": clock.takes("few", 1e8)}, rounds=1)
    records = alternate([few, provider(clock, "many", 1e8)], clock, budget_s=0.0)
    assert [len(record.times["forward"]) for record in records] == [1, 15]


def test_a_row_tells_its_time_beside_those_it_names(clock: Clock) -> None:
    floor = Provider("floor", {"forward": clock.takes("floor", 100.0, 200.0)}, "reference")
    work = {"forward": clock.takes("ours", 150.0, 300.0)}
    ours = Provider("ours", work, "ours", beside=("floor", "absent"), returns=3)
    records = alternate([floor, ours], clock, budget_s=0.0)
    row = rows(records, 1000, {})[1]
    assert row["beside"] == {"floor": pytest.approx(1.5), "absent": None}
    assert (row["peak_bytes"], row["beyond_bytes"], row["gb_s"]) == (7, 4, None)
    assert report.set_beside(row) == "1.5x floor"


def test_a_ratio_is_the_median_of_rounds_not_a_ratio_of_medians(clock: Clock) -> None:
    # the machine slows down 10 times for half of the rounds; the peer always takes 3 times ours
    drift = [1.0, 10.0, 1.0, 10.0, 10.0, 1.0, 10.0]
    ours = provider(clock, "ours", *(100 * d for d in drift), role="ours")
    peer = provider(clock, "peer", *(300 * d for d in drift))
    read = Provider("read", {"read": clock.takes("read", *(50 * d for d in drift))}, "reference")
    records = alternate([ours, peer, read], clock, budget_s=0.0)
    table = {row["provider"]: row for row in rows(records, 1000, shape="s")}
    assert table["peer"]["ratio"] == pytest.approx(3.0)
    assert table["ours"]["ratio"] == pytest.approx(1.0)
    assert table["ours"]["of_read"] == pytest.approx(0.5)
    assert table["read"]["of_read"] == pytest.approx(1.0)
    assert table["ours"]["gb_s"] == pytest.approx(1000 / (table["ours"]["us"] * 1e3))
    assert paired_ratio({0: 1.0, 1: 8.0, 2: 5.0}, {0: 2.0, 1: 2.0}) == pytest.approx(2.25)
    assert paired_ratio({0: 1.0}, {1: 1.0}) is None


def test_spread() -> None:
    assert spread(dict(enumerate(range(101)))) == pytest.approx((20, 50, 80))
    assert spread({3: 5.0}) == (5.0, 5.0, 5.0)


def test_passes_are_timed_apart_and_bytes_are_those_they_must_move(clock: Clock) -> None:
    stages = {"forward": clock.takes("f", 30.0), "backward": clock.takes("b", 70.0)}
    copy = Provider("copy", {"copy": clock.takes("c", 35.0)}, "reference")
    records = alternate([Provider("ours", stages, "ours"), copy], clock, budget_s=0.0)
    table = {row["pass"]: row for row in rows(records, 1000)}
    assert table["forward"]["us"] == pytest.approx(0.030)
    assert table["backward"]["us"] == pytest.approx(0.070)
    assert table["backward"]["of_copy"] == pytest.approx(0.5)  # both move 2000 bytes
    assert table[TOTAL]["us"] == pytest.approx(0.100)
    assert table[TOTAL]["gb_s"] == pytest.approx(30.0)
    assert table[TOTAL]["peak_bytes"] == 7
    assert table["backward"]["peak_bytes"] is None


def test_nothing_waits_between_the_flush_and_the_clock(clock: Clock) -> None:
    # A GPU that idles while the host launches would be charged for the host's time.
    def work(_: Any) -> None:
        clock.steps.append("work")

    def prepare() -> None:
        clock.steps.append("prepare")

    alternate([Provider("ours", {"forward": work}, prepare=prepare)], clock, max_rounds=1)
    whole = ["prepare", "synchronise", "flush", "work", "synchronise"]
    assert clock.steps == 3 * whole  # two rehearsals and a round


def test_warm_caches_are_those_that_the_same_call_left(clock: Clock) -> None:
    def work(_: Any) -> None:
        clock.steps.append("work")

    warm = Group("", "", [Provider("ours", {"forward": work})]).warm()
    alternate(warm.providers, clock, max_rounds=1)
    assert clock.steps == 3 * ["work", "synchronise", "work", "synchronise"]
    assert warm.caches == "warm"


def test_many_calls_in_a_stage_are_divided(clock: Clock) -> None:
    many = Provider("many", {"call": clock.takes("m", 500.0)}, calls=100)
    assert rows(alternate([many], clock, budget_s=0.0), 1)[0]["us"] == pytest.approx(0.005)


def refusing(_: Any) -> None:
    raise RuntimeError("0 active drivers.\nThere should only be one.")


def test_whoever_cannot_run_stays_in_the_table(clock: Clock) -> None:
    no = Provider("no", {"forward": refusing})
    late = clock.takes("late", 1.0)
    big = Provider("big", {"forward": clock.takes("big", 1.0), "backward": late})
    ok = provider(clock, "ok", 1.0, role="ours")
    expected = {"big": 950.0}  # of 1000 free
    records = alternate(
        [no, big, ok], clock, budget_s=0.0, expected_peak=lambda p: expected.get(p.name, 0.0)
    )
    table = {row["provider"]: row for row in rows(records, 1)}
    assert table["no"]["refusal"] == "RuntimeError: 0 active drivers. There should only be one."
    assert table["no"]["us"] is table["no"]["ratio"] is None
    assert "are free" in table["big"]["refusal"]
    assert "big" not in clock.trace
    assert (table["big"]["pass"], table["ok"]["ratio"]) == (TOTAL, 1.0)
    assert "0 active drivers" in report.cells(table["no"])[1]


# In a process of its own, as a benchmark has: a heap with a history may serve 64 MiB from chunks
# that were freed before, and keeps them resident when they are freed again.
_PEAKS = """
import torch
from benchmarks.devices import Cpu
size, cpu = 64 << 20, Cpu()
def temporary():
    torch.ones(size, dtype=torch.uint8)
    return torch.ones(size // 2, dtype=torch.uint8)
def nested():
    held = torch.ones(size, dtype=torch.uint8)
    return held[: size // 2].clone()
for work in (temporary, nested, lambda: None):
    for _ in range(2):
        print(cpu.peak_bytes(work)[1])
"""


def test_peak_memory_sees_what_was_allocated_and_freed() -> None:
    if not Cpu().can_measure:
        pytest.skip(Cpu().memory_method)
    run = subprocess.run(
        [sys.executable, "-c", _PEAKS],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    size = 64 << 20
    for peak, truth in zip(
        run.stdout.split(), (size, size, 1.5 * size, 1.5 * size, 0, 0), strict=True
    ):
        assert int(peak) == pytest.approx(truth, rel=0.1, abs=1 << 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 32), (7, 333), (64, 4096)], ids=str)
def test_every_plain_read_reads_the_last_bytes(shape: tuple[int, int], dtype: torch.dtype) -> None:
    buffer = torch.zeros(shape, dtype=dtype)
    whole = buffer.nbytes // 512 * 512 or buffer.nbytes
    candidates = reads(buffer)
    before = {name: read().clone() for name, read in candidates.items()}
    buffer.view(-1).view(torch.uint8)[whole - 8 : whole] = 1
    if whole >= 512:
        buffer.view(-1).view(torch.uint8)[whole - 1] = 0xBF  # negative as an integer and a float
    changed = {name for name, read in candidates.items() if not read().equal(before[name])}
    assert changed >= candidates.keys() - {"amax of int16"}  # the max of int16 sees the 1s instead
    assert "amax of int16" not in candidates or buffer.view(torch.int16).amax() > 0


TINY = Shape("tiny", 8, 640)


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)  # compiling takes a minute
    for name in ("trl_both", "trl_separate"):  # importing TRL takes seconds: see the next test
        monkeypatch.setattr(peers, name, peers.shifted_form)
    monkeypatch.setattr(peers, "liger", lambda *_: refusing(None))
    shapes = [TINY, Shape("call", 1, 32)]
    monkeypatch.setattr(op, "CALLS", 2)
    return run.measure("token_log_probs", shapes, ["float32", "bfloat16"], "cpu", 0.0)


def test_token_log_probs_end_to_end(
    result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result["tests"] = "green"
    paths = report.write(result, tmp_path)
    loaded = json.loads(paths[0].read_text())
    assert loaded == result
    about = {"op", "device", "threads", "isa", "date", "commit", "dirty", "versions", "memory"}
    assert loaded.keys() >= about | {"memory_method", "other_load", "tests", "acceptance", "rows"}
    assert loaded["versions"].keys() == {*run.PACKAGES, "python"}
    assert loaded["memory"].keys() == {"transparent_hugepage", "THP_MEM_ALLOC_ENABLE"}
    case = {"shape", "model", "dtype", "group", "buffers", "caches", "pass", "provider", "role"}
    times = {"us", "p20_us", "p80_us", "rounds", "ratio", "gb_s", "of_read", "of_copy"}
    assert (loaded["gpu_state"], loaded["left_out"]) == (["", ""], [])
    more = {
        "computes",
        "peak_bytes",
        "beyond_bytes",
        "beside",
        "max_error",
        "input_bytes",
        "refusal",
    }
    assert all(row.keys() == case | times | more for row in loaded["rows"])
    groups = {(row["group"], row["buffers"]) for row in loaded["rows"]}
    assert groups == {("forward", ""), ("training", "fresh"), ("training", "warm"), ("call", "")}

    ran = [row for row in loaded["rows"] if row["refusal"] is None]
    refused = {row["provider"] for row in loaded["rows"]} - {row["provider"] for row in ran}
    assert refused >= {"Liger cross_entropy", "logpi torch, in place"}
    assert refused <= {"Liger cross_entropy", "logpi torch, in place"} | ours_elsewhere()
    errors = [row for row in ran if row["max_error"] is not None]
    assert {row["provider"] for row in errors} >= {"F.cross_entropy", "torch.compile, closed form"}
    for row in errors:  # a provider that computes something else would be off by about 1
        assert row["max_error"] < (1e-4 if row["dtype"] == "float32" else 0.1), row

    ours = next(row for row in ran if row["role"] == "ours")["provider"]
    lines = report.summary(loaded).splitlines()
    assert sum(ours in line and "of copy" in line for line in lines) == 2 * 5  # dtypes, passes
    met = [check["met"] for check in loaded["acceptance"]]
    assert sum(line.startswith(("met", "MISSED")) for line in lines) == len(met) - met.count(None)
    assert f"targets not measured: {met.count(None)}" in lines

    report.show(result)
    shown, page = capsys.readouterr().out, paths[1].read_text()
    for text in (shown, page):
        assert "F.cross_entropy" in text
        assert "not measured" in text
        assert all(name in text for name in refused)
    assert paths[2].stat().st_size > 10_000


def test_what_there_was_no_time_for_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(op, "groups", lambda _: [op.Group("none", "", [])])
    shapes = [TINY, Shape("other", 8, 700)]
    found = run.measure("token_log_probs", shapes, ["float32", "bfloat16"], "cpu", 0.0, 0.0)
    assert found["left_out"] == ["tiny bfloat16", "other float32", "other bfloat16"]
    report.show(found | {"tests": "green"})
    assert "left out for lack of time: tiny bfloat16" in capsys.readouterr().out


def test_a_graph_holds_many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "REPLAYED", 3)
    case, seen = op.Case(TINY, torch.float32, "cpu"), []
    form = op.Form("ours", lambda logits, _: seen.append(logits.data_ptr()), role="ours")
    provider = op._replayed(case, form)
    (record,) = alternate([provider], device_of(case.logits), budget_s=0.0, max_rounds=1)
    assert len(set(seen)) == 3 == provider.calls  # each its own logits: none is in a cache
    assert seen == 3 * seen[:3]  # two rehearsals and a round
    row = rows([record], case.nbytes)[0]
    assert (row["pass"], row["refusal"]) == ("graph replay", None)
    assert row["gb_s"] == pytest.approx(case.nbytes / row["us"] / 1e3)


def test_a_peer_that_writes_over_its_input_gets_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def rude(logits: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, None]:
        found = peers.logsumexp_form(logits, ids)
        logits.detach().zero_()
        return found

    monkeypatch.setattr(peers, "liger", rude)
    case = op.Case(TINY, torch.float32, "cpu")
    before = case.logits.clone()
    provider = op._forward(case, op.Form("rude", rude, op.ONE))
    (record,) = alternate(
        [provider], device_of(case.logits), budget_s=0.0, max_rounds=1, error_of=case.error
    )
    assert record.max_error < 1e-4
    assert case.logits.equal(before)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_target_can_be_measured(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)  # whose import warns
    shapes = {str(shape) for shape in SHAPES[kind]}
    assert {target.shape for target in op.TARGETS[kind]} <= shapes
    assert {named(name) for name in QUICK[kind]} <= set(SHAPES[kind])
    names = [form.name for form in op._forms(kind)]
    for target in op.TARGETS[kind]:
        assert any(name.startswith(target.against or "") for name in names)
    assert len(set(names)) == len(names)


def ours_elsewhere() -> set[str]:
    """Rows of ours that this machine lacks."""
    absent = {row.name for row in op.BACKENDS if row.unavailable() is not None}
    return {f"logpi {name}{how}" for name in absent for how in ("", ", in place", ", fused")}


@pytest.mark.frameworks
@pytest.mark.parametrize("form", ["trl_both", "trl_separate"])
def test_trls_own_functions_give_the_same_numbers(form: str) -> None:
    pytest.importorskip("trl")
    random = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(16, 50, generator=random), torch.arange(16)
    found, truth = getattr(peers, form)(logits, ids), peers.log_softmax_form(logits, ids)
    for value, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(value.view(-1), expected)


def test_targets_judge_the_strongest_peer_and_say_when_nothing_was_measured() -> None:
    base = {"shape": "[1, 2]", "pass": "forward", "buffers": "", "caches": "cold"}
    base |= {"dtype": "float32"}
    base |= {"beside": {"4 GEMMs": 1.2, "logpi cpu": 0.5}, "beyond_bytes": 3 << 20}
    base |= {"refusal": None, "peak_bytes": 2, "input_bytes": 100, "us": 30.0, "of_read": 0.8}
    table = [
        {**base, "provider": "logpi cpu", "role": "ours", "ratio": 1.0},
        {**base, "provider": "TRL a", "role": "peer", "ratio": 9.0, "peak_bytes": 4},
        {**base, "provider": "TRL b", "role": "peer", "ratio": 4.0, "peak_bytes": 5},
        {**base, "provider": "TRL c", "role": "peer", "ratio": None, "refusal": "cannot"},
        {**base, "provider": "torch", "role": "peer", "ratio": 0.5, "peak_bytes": 3},
    ]

    def verdict(metric: str, bound: float, against: str | None = None) -> tuple[Any, Any]:
        target = Target("x", "[1, 2]", ("forward", ""), metric, bound, against=against)
        (check,) = target.check(table)
        return check["value"], check["met"]

    assert verdict("ratio", 5.0, "TRL") == (4.0, False)
    assert verdict("ratio", 4.0, "TRL") == (4.0, True)
    assert verdict("ratio", 1.0, "") == (0.5, False)
    assert verdict("peak_ratio", 1.0, "") == (1.5, True)
    assert verdict("peak_ratio", 1.0, "TRL") == (2.0, True)
    assert verdict("beside", 1.10, "4 GEMMs") == (1.2, False)
    assert verdict("beside", 0.55, "logpi") == (0.5, True)
    assert verdict("beside", 0.55, "3 GEMMs") == (None, None)
    assert verdict("beyond_mib", 2.0) == (3.0, False)
    assert verdict("memory", 1.02) == (pytest.approx(1.02), True)
    assert verdict("us", 12.0) == (30.0, False)
    assert verdict("of_read", 0.8) == (0.8, True)
    (nothing,) = Target("x", "[9, 9]", ("forward", ""), "us", 1.0).check(table)
    assert nothing["met"] is nothing["value"] is None


@pytest.mark.parametrize(
    ("passes", "buffers", "titles"),
    [
        (("forward",), "", ["forward"]),
        (("forward",), "in place", ["forward, in place"]),
        (("forward", "backward"), "", ["forward", "backward"]),
        (("forward", "both"), "warm", ["both, warm gradient"]),
    ],
)
def test_a_forward_is_left_to_the_sum_only_where_there_is_one(
    passes: tuple[str, ...], buffers: str, titles: list[str], tmp_path: Path
) -> None:
    case = dict.fromkeys(("model", "shape", "dtype", "group"), "x") | {"caches": "cold"}
    times = {"us": 2.0, "p20_us": 1.0, "p80_us": 3.0, "rounds": 5, "input_bytes": 8}
    empty = dict.fromkeys(
        ("refusal", "ratio", "gb_s", "of_read", "of_copy", "peak_bytes", "max_error")
    )
    row = {**case, **times, **empty, "provider": "ours", "role": "ours", "computes": ""}
    table = [{**row, "buffers": buffers, "pass": name} for name in passes]
    assert [title.split(": ")[1] for title, _ in report.sections(table)] == titles
    picture = tmp_path / "it.png"
    report.draw({"rows": table, "op": "it", "device": "here"}, picture)
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize("body", ["assert False", None])
def test_red_tests_stop_every_number(
    body: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tests = tmp_path / "tests/ops"
    tests.mkdir(parents=True)
    if body is not None:  # None: no test at all is no better than a red one
        (tests / "test_token_log_probs.py").write_text(f"def test_it():\n    {body}\n")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "measure", lambda *_: pytest.fail("measured on red"))
    assert run.main(["token_log_probs", "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "out").exists()


def test_green_tests_let_it_run(tmp_path: Path) -> None:
    tests = tmp_path / "tests/ops"
    tests.mkdir(parents=True)
    (tests / "test_it.py").write_text("def test_it():\n    pass\n")
    assert run.green("it", tmp_path)


def test_shapes_have_names() -> None:
    assert str(named("qwen2.5/2k")) == "[2048, 151936]"
    assert (named("3x5").rows, named("3x5").vocab) == (3, 5)
    with pytest.raises(ValueError, match="ROWSxVOCAB or one of call"):
        named("3x")
    assert str(named("qwen2.5-3b/512", LINEAR_SHAPES)) == "[512, 2048, 151936]"
    assert str(named("3x4x5", LINEAR_SHAPES)) == "[3, 4, 5]"
    with pytest.raises(ValueError, match="ROWSxHIDDENxVOCAB or one of memory"):
        named("3x5", LINEAR_SHAPES)


def test_other_load_is_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter([(10.0, 5.0, 1.0), (20.0, 13.0, 3.0)])
    monkeypatch.setattr(devices.OtherLoad, "_now", staticmethod(lambda: next(states)))
    assert devices.OtherLoad().share() == pytest.approx(0.6)  # 8 busy, 2 of them ours, of 10


def test_the_device_is_named_without_the_host() -> None:
    device = device_of(torch.zeros(1))
    assert devices.slug(device).endswith(f"-{torch.get_num_threads()}-threads")
