"""Expressions are compared by math-verify, in a process that can be stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from logpi.rewards import MajorityVote, equivalent
from logpi.rewards.answers import normal_form
from logpi.rewards.equivalence import Comparison

pytest.importorskip("math_verify")

from logpi.rewards import _symbolic

BOMBS = [
    r"9^{9^{9}}", r"9^{9^{9^{9}}}", "1000000!", "((10!)!)!", r"2^{10^{10}}", r"10^{10^{8}}",
    r"\sin^{20}x\cos^{30}y+\tan^{40}z", r"\int_0^1 e^{-x^{x^{x}}} dx", r"\sum_{i=1}^{10^{9}} i",
    r"\prod_{i=1}^{10^{7}} i", r"\binom{10^6}{5\cdot 10^5}", r"\sqrt[3]{2+\sqrt{5}}^{999}",
    r"(x+1)^{9999}", r"(a+b+c+d+e+f)^{50}", r"\frac{1}{" * 20 + "x" + "}" * 20, "(" * 100,
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}^{999999}", r"{" * 60 + "x" + "}" * 60, r"\log" * 20,
    "x=" * 40, "|" * 100, "1+" * 59 + "1", "-" * 110 + "x", r"\frac" * 20, "x^" * 50 + "2",
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _started() -> None:
    """The first question waits for the process, which other calls start before they need it."""
    assert equivalent("x+1", "1+x", symbolic_seconds=30)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"\sqrt{8}", r"2\sqrt{2}"),
        ("x^2+2x+1", "(x+1)^2"),
        (r"\frac{\pi}{2}", r"\pi/2"),
        (r"\sqrt{4}", "2"),
        (r"(\sqrt{4}, x+x)", "(2, 2x)"),
        (r"\{\sqrt{4}, \sqrt{9}\}", "3, 2"),
        ("2^{10}", "1024"),
    ],
)
def test_expressions(a: str, b: str) -> None:
    assert equivalent(a, b)
    assert equivalent(b, a)
    assert not equivalent(a, b, symbolic_seconds=0)


@pytest.mark.parametrize(
    ("a", "b"),
    [(r"\sqrt{8}", "3"), ("x+1", "x-1"), (r"(\sqrt{4}, 1)", "(1, 2)"), ("Monday", "Tuesday"),
     (r"(\sqrt{4}, 3)", r"[\sqrt{4}, 3)"), ("", "")],
)  # fmt: skip
def test_other_expressions(a: str, b: str) -> None:
    assert not equivalent(a, b)


def test_words_and_numbers_ask_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_symbolic, "equal", lambda *_: pytest.fail("asked"))
    assert equivalent(r"\frac12", "0.5")
    assert not equivalent("Monday", "3")
    assert not equivalent("Monday", "x+1")


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_expression_takes_long(bomb: str) -> None:
    assert not equivalent(bomb, "17x+3")
    assert equivalent(bomb, bomb)
    assert _cpu_seconds(lambda: equivalent(bomb, "17x+3")) < 0.5


def test_bombs_in_a_vote_take_one_budget() -> None:
    texts = [f"\\boxed{{{bomb}}}" for bomb in BOMBS[:14]]
    reward = MajorityVote(group_size=len(texts))
    assert _cpu_seconds(lambda: reward(texts)) < 1
    _symbolic._known.clear()
    found = reward.details(texts)
    assert found.metrics["symbolic_skipped"] > 0
    assert found.rewards == [1.0] + [0.0] * 13


def _cpu_seconds(call: Callable[[], object]) -> float:
    """This process's and the other's: what a call takes on a machine that does nothing else."""
    _symbolic._known.clear()
    asked, spent = _symbolic.equal, []

    def equal(left: str, right: str, seconds: float) -> tuple[bool, float]:
        found = asked(left, right, seconds)
        spent.append(found[1])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_symbolic, "equal", equal)
        start = time.process_time()
        call()
        return time.process_time() - start + sum(spent)


def test_a_computation_that_no_signal_interrupts_is_ended() -> None:
    """As within one call into C: here, a handler that never runs."""
    code = (
        "import signal, _symbolic_worker as worker\n"
        "with worker._limit(0.1):\n"
        "    signal.signal(signal.SIGPROF, signal.SIG_IGN)\n"
        "    while True: pass"
    )
    done = _beside_the_worker(code)
    assert done.returncode == -signal.SIGVTALRM


def test_a_process_that_stops_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = _symbolic._running()
    worker.wait_until_ready()
    os.kill(worker.process.pid, signal.SIGSTOP)
    monkeypatch.setattr(_symbolic, "_PATIENCE", 0.2)
    assert not equivalent("x+3", "3+x")
    assert _symbolic._running() is not worker
    assert equivalent("x+4", "4+x", symbolic_seconds=30)


def test_it_works_off_the_main_thread_and_leaves_signals_alone() -> None:
    """math-verify's own timeouts raise there, and replace the caller's alarm on the main thread."""
    before = signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGPROF)
    verdicts = []

    def ask() -> None:
        verdicts.append(equivalent("y+y", "2y"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [True] * 4
    assert (signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGPROF)) == before


def test_the_process_ends_with_its_owner() -> None:
    code = (
        "import _symbolic as s; assert s.equal('x+1', '1+x', 30)[0]; print(s._worker.process.pid)"
    )
    done = _beside_the_worker(code, capture_output=True, text=True, check=True)
    assert not done.stderr
    assert not Path(f"/proc/{int(done.stdout)}").exists()


def _beside_the_worker(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs code that imports the modules as their process does: without torch."""
    environment = os.environ | {"PYTHONPATH": str(Path(_symbolic.__file__).parent)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, timeout=120, **options)


def test_classes_are_those_of_their_first_members() -> None:
    answers = ["1/2", "x+1", None, "0.5", r"\sqrt{2}", r"2^{\frac12}", "1+x", "$x+1$"]
    forms = [None if answer is None else normal_form(answer) for answer in answers]
    assert Comparison().classes(forms) == [0, 1, None, 0, 2, 2, 1, 1]
    assert Comparison(0).classes(forms) == [0, 1, None, 0, 2, 3, 4, 1]


def test_no_budget_compares_as_written() -> None:
    comparison = Comparison(0)
    assert not comparison.same(normal_form("x+1"), normal_form("1+x"))
    assert comparison.skipped == 1
    assert comparison.same(normal_form("x+1"), normal_form("$x+1$"))
