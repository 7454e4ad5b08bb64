"""From completions to scores: where the program is, what it earns, and that no text breaks it."""

from __future__ import annotations

import pickle
import random
import string
import sys
import time
from collections.abc import Sequence
from typing import Any

import pytest

from logpi.rewards import pass_at_k
from logpi.rewards.code import (
    Limits,
    ProgramTests,
    SandboxError,
    extract_program,
    pass_at_k_by_difficulty,
)
from logpi.rewards.code import reward as module
from logpi.rewards.code.extract import MAX_CHARACTERS

if sys.platform != "linux":
    pytest.skip("sandbox: expected Linux", allow_module_level=True)

TESTS = ["assert f(2) == 4", "assert f(0) == 0"]
HONEST = "def f(x):\n    return 2 * x"
LIMITS = Limits(cpu_seconds=2, wall_seconds=30.0)


@pytest.fixture(scope="module")
def reward() -> ProgramTests:
    return ProgramTests(limits=LIMITS, strict=False)


def fenced(program: str, language: str = "python") -> str:
    return f"```{language}\n{program}\n```"


# ---- where the program is -----------------------------------------------------------------------

FIRST, LAST = "def f(x): return 1", "def f(x): return 2"


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        (HONEST, HONEST),
        (fenced(HONEST), HONEST),
        (f"Sure!\n{fenced(HONEST)}\nIt doubles.", HONEST),
        (fenced(HONEST, "") + fenced("graph", "mermaid"), HONEST),
        (fenced(HONEST, "Python"), HONEST),
        (f"```python\n{HONEST}", HONEST),  # cut off before it was closed
        (f"{fenced(FIRST)}\nNo, better:\n{fenced(LAST)}", LAST),
        (f"{fenced(LAST)}\nIt prints:\n{fenced('f(3)', '')}", LAST),  # does not bind f
        (f"{fenced(LAST)}\n{fenced('def f(x) return', '')}", LAST),  # does not parse
        (f"1. So:\n   ```python\n   {FIRST}\n   ```", FIRST),
        (f"```python\n{FIRST}\n```python\n{LAST}\n```", LAST),
        (fenced("f = lambda x: 2 * x"), "f = lambda x: 2 * x"),
        (fenced("from math import sqrt as f"), "from math import sqrt as f"),
        (fenced("if True:\n    def f(x): return 1"), "if True:\n    def f(x): return 1"),
        (fenced(HONEST, "cpp"), None),
        (fenced("def g(x): return 1"), None),
        ("The answer is f(x) = 2x.", None),
        ("f", None),
        ("", None),
        ("def f(x): return 2\0", None),
        ("def f(x): return " + "(" * 5000 + ")" * 5000, None),
        ("def f(x): return " + "-" * 50000 + "x", None),
        ("def f(x): return 2 #" + "x" * MAX_CHARACTERS, None),
        ("def f(x): '\ud800'", None),
        (fenced("def f(x): return '\\d'"), "def f(x): return '\\d'"),  # which warns
    ],
)
def test_the_program_is_found(completion: str, program: str | None) -> None:
    assert extract_program(completion, "f") == program


def test_the_first_program_if_asked() -> None:
    assert extract_program(fenced(FIRST) + "\n" + fenced(LAST), "f", block="first") == FIRST
    assert extract_program(fenced("x = f(1)") + "\n" + fenced(LAST), "f", block="first") == LAST
    assert extract_program(fenced("class A: pass")) == "class A: pass"
    assert extract_program(fenced("print(3)")) is None


# ---- what it earns ------------------------------------------------------------------------------

COMPLETIONS = [fenced(HONEST), fenced("def f(x): return x"), "no code", fenced("def f(x): oops")]
COLUMNS = {"test": [TESTS] * 4, "difficulty": ["easy", "hard", "hard", "hard"]}


def test_rewards_and_parts(reward: ProgramTests) -> None:
    found = reward.details(COMPLETIONS, **COLUMNS)
    assert found.rewards == [1.0, 0.5, 0.0, 0.0]
    assert found.parts == {
        "fraction": [1.0, 0.5, 0.0, 0.0],
        "passed": [1.0, 0.0, 0.0, 0.0],
        "program": [1.0, 1.0, 0.0, 1.0],
    }
    assert found.metrics == {
        "fraction": 0.375, "passed": 0.25, "program": 0.75, "passed/easy": 1.0, "passed/hard": 0.0,
    }  # fmt: skip


def test_all_or_nothing() -> None:
    reward = ProgramTests(score="all", limits=LIMITS, strict=False)
    assert reward(COMPLETIONS, **COLUMNS) == [1.0, 0.0, 0.0, 0.0]


def test_a_call_is_what_a_trainer_makes(reward: ProgramTests) -> None:
    chats = [[{"role": "assistant", "content": text}] for text in COMPLETIONS]
    logged: dict[str, float] = {}
    rewards = reward(
        completions=chats, prompts=[""] * 4, completion_ids=[[]] * 4, entry_point=["f"] * 4,
        log_metric=logged.__setitem__, **COLUMNS,
    )  # fmt: skip
    assert rewards == [1.0, 0.5, 0.0, 0.0]
    assert logged["program_tests/passed/easy"] == 1.0


def test_the_reasons_can_be_read(reward: ProgramTests) -> None:
    runs = reward.runs(COMPLETIONS, **COLUMNS)
    assert runs[1].outcomes[0].why == "assert f(2) == 4: failed"
    assert "NameError" in runs[3].outcomes[0].why
    assert runs[2].outcomes == ()


def test_the_entry_point_may_have_any_name(reward: ProgramTests) -> None:
    check = "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(1) == 3"
    assert reward([HONEST], test=[check], entry_point=["f"]) == [0.5]


def test_a_group_that_repeats_itself_runs_once(
    reward: ProgramTests, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    sandbox = reward._sandbox()
    run_all = sandbox.run_all
    monkeypatch.setattr(sandbox, "run_all", lambda jobs: ran.append(len(jobs)) or run_all(jobs))
    assert reward([HONEST] * 8, test=[TESTS] * 8) == [1.0] * 8
    assert ran == [1]


def test_the_same_every_time(reward: ProgramTests) -> None:
    draws = "import random\ndef f(x): return [random.random(), *{'a', 'b', 'c'}, hash('a')]"
    value = reward._sandbox().run(draws, ["assert f(2) == 0, f(2)"]).outcomes[0].why
    for _ in range(3):
        assert reward._sandbox().run(draws, ["assert f(2) == 0, f(2)"]).outcomes[0].why == value


def test_settings_and_columns_are_checked() -> None:
    with pytest.raises(ValueError, match="score: expected 'fraction' or 'all', got 'mean'"):
        ProgramTests(score="mean")
    with pytest.raises(ValueError, match="block: expected 'last' or 'first', got 'any'"):
        ProgramTests(block="any")
    with pytest.raises(TypeError, match="limits: expected Limits, got int"):
        ProgramTests(limits=3)  # type: ignore[arg-type]
    reward = ProgramTests(limits=LIMITS, strict=False)
    with pytest.raises(ValueError, match="test: expected a column of that name, got none"):
        reward(["x"])
    with pytest.raises(ValueError, match=r"test\[0\]: expected a text or a list of texts, got 3"):
        reward(["x"], test=[3])


def test_a_machine_that_cannot_is_refused_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(limits: Limits, **_: Any) -> None:
        raise SandboxError("sandbox: this machine cannot deny or limit: network")

    monkeypatch.setattr(module, "Sandbox", cannot)
    with pytest.raises(SandboxError, match="cannot deny or limit: network"):
        ProgramTests(limits=Limits(cpu_seconds=7))


def test_a_reward_is_a_value(reward: ProgramTests) -> None:
    copy = pickle.loads(pickle.dumps(reward))
    assert copy == reward
    assert copy([HONEST], test=[TESTS]) == [1.0]


def test_pass_at_k_by_difficulty() -> None:
    found = pass_at_k_by_difficulty([4, 4, 4], [1, 4, 0], ["easy", "easy", "hard"], 2)
    assert list(found) == ["easy", "hard", "all"]
    assert found["easy"].per_problem == pytest.approx([0.5, 1.0])
    assert found["hard"].value == 0.0
    assert found["all"] == pass_at_k([4, 4, 4], [1, 4, 0], 2)
    with pytest.raises(ValueError, match="difficulty: expected one for each problem, got 1 for 2"):
        pass_at_k_by_difficulty([4, 4], [1, 1], ["easy"], 1)


# ---- no text breaks it --------------------------------------------------------------------------

PIECES = [
    "```", "```python\n", "\n", "def f(x):", "    return ", "2 * x", "lambda", "class ", "f", "(",
    ")", "[" * 50, "\0", "\ud800", "\u202e", "é", "'''", '"', "\\", "#", "assert f(2) == 4", "\t",
    "import ", "os", "exec('", "@", "async ", "await ", "yield ", "f'{", "}", "0x", "1e999",
    "9" * 5000,
    "~" * 500, "if 1:\n" + " ", "\r", "\x0c", "=", ":=", "*", "**", "match x:\n case ", "type ",
    "global f\n",
]  # fmt: skip


def adversarial(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        kind = draw.random()
        if kind < 0.02:  # some of these run
            body = " ".join(draw.choices(("x", "-", "+", "(", ")", "2", "[x]", "/"), k=3))
            texts.append(fenced(f"def f(x):\n    return {body}"))
        elif kind < 0.5:
            texts.append("".join(draw.choices(PIECES, k=draw.randrange(30))))
        else:
            texts.append("".join(draw.choices(string.printable, k=draw.randrange(300))))
    return texts


def check_texts(reward: ProgramTests, texts: Sequence[str]) -> float:
    """Scores them one by one; the worst call's seconds without what programs may use."""
    worst = 0.0
    for text in texts:
        start = time.perf_counter()
        (score,) = reward([text], test=[TESTS], entry_point=["f"])
        worst = max(worst, time.perf_counter() - start)
        assert 0.0 <= score <= 1.0
    return worst


def test_random_texts(reward: ProgramTests) -> None:
    check_texts(reward, adversarial(0, 3000))


@pytest.mark.slow
def test_a_hundred_thousand_texts() -> None:
    """None raises, and the slowest ends within a second of the wall limit."""
    reward = ProgramTests(limits=Limits(cpu_seconds=1, wall_seconds=1.5), strict=False)
    assert check_texts(reward, adversarial(1, 100_000)) < 1.5 + 1.0


def test_texts_of_hypothesis(reward: ProgramTests) -> None:
    hypothesis = pytest.importorskip("hypothesis")
    strategies = pytest.importorskip("hypothesis.strategies")
    texts = strategies.one_of(
        strategies.text(max_size=200),
        strategies.lists(strategies.sampled_from(PIECES), max_size=20).map("".join),
        strategies.text(max_size=60).map(lambda body: fenced(f"def f(x):\n    return {body}")),
    )

    @hypothesis.settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @hypothesis.given(texts)
    def scores(text: str) -> None:
        check_texts(reward, [text])

    scores()


@pytest.mark.parametrize(
    "text",
    ["```\n" * 200_000, "```python\n" * 100_000, " " * 2_000_000, "def " * 500_000, "f" * 2_000_000,
     "`" * 1_000_000, "\n" * 1_000_000, "def f(" * 10_000, "```py\ndef f(x):" + "(" * 60_000],
    ids=lambda text: repr(text[:9]),
)  # fmt: skip
def test_long_texts_are_cheap(text: str, reward: ProgramTests) -> None:
    start = time.process_time()
    assert reward([text], test=[TESTS]) == [0.0]
    assert time.process_time() - start < 1.0
