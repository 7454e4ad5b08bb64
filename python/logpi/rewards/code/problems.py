"""Flowchart problems of any number: functions drawn from families, their charts, their tests.

A family is a shape (two branches, a loop with a condition, a recurrence..) whose constants,
comparisons and operations are drawn. The tests' expected values come from running the function, and
no statement of it can be left out without failing one of them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from logpi.rewards.code.flowchart import Flowchart, flowchart
from logpi.rewards.code.mutants import undetected
from logpi.rewards.contract import check_choice, check_count

DIFFICULTIES = ("easy", "medium", "hard")
KINDS = ("basic", "boundary", "large")

_PROMPT = """\
Write the Python function that this flowchart shows.
{chart}
Begin with

```python
{starter_code}
```
"""


@dataclass(frozen=True)
class Problem:
    """A flowchart and the tests of its program; the names are those of Code-Vision's data.

    Attributes:
        task_id: seed, number and family.
        difficulty: "easy", "medium" or "hard".
        canonical_solution: the program.
        entry_point: its name.
        starter_code: its first line.
        test: assertions, one a text.
        kinds: "basic", "boundary" or "large", of each assertion.
    """

    task_id: str
    difficulty: str
    canonical_solution: str
    entry_point: str
    starter_code: str
    test: tuple[str, ...]
    kinds: tuple[str, ...]

    @property
    def chart(self) -> Flowchart:
        return flowchart(self.canonical_solution)

    @property
    def prompt(self) -> str:
        """With the chart as Mermaid."""
        chart = f"\n```mermaid\n{self.chart.mermaid()}\n```\n"
        return _PROMPT.format(chart=chart, starter_code=self.starter_code)

    @property
    def picture_prompt(self) -> str:
        """The text that goes with a picture: see `Flowchart.draw`."""
        return _PROMPT.format(chart="", starter_code=self.starter_code)


def problems(
    number: int, *, seed: int = 0, difficulties: tuple[str, ...] = DIFFICULTIES
) -> list[Problem]:
    """So many different problems, the difficulties in turn; the same for the same arguments.

    Raises:
        ValueError: a family has run out; tens of thousands of each difficulty are there.
    """
    check_count("number", number)
    for difficulty in difficulties:
        check_choice("difficulties", difficulty, *DIFFICULTIES)
    draw = random.Random(f"problems {seed}")
    found: dict[str, Problem] = {}
    tries = 0
    while len(found) < number:
        tries += 1
        if tries > 100 * number + 1000:
            raise ValueError(f"number: expected at most {len(found)} problems, got {number}")
        difficulty = difficulties[len(found) % len(difficulties)]
        family = draw.choice(_FAMILIES[difficulty])
        program = family(draw)
        if program in found:
            continue
        asserted = _assertions(program, draw)
        if asserted is not None:
            name = f"{seed}/{len(found)}/{family.__name__.strip('_')}"
            kinds, tests = asserted
            starter = program.partition("\n")[0]
            found[program] = Problem(name, difficulty, program, "f", starter, tests, kinds)
    return list(found.values())


def programs(
    *, seed: int = 0, difficulties: tuple[str, ...] = DIFFICULTIES
) -> Iterator[tuple[str, str]]:
    """Endless (family, program) of what `problems` draws from, the difficulties in turn: untested,
    so thousands a second, and with repetitions; some never end."""
    for difficulty in difficulties:
        check_choice("difficulties", difficulty, *DIFFICULTIES)
    draw = random.Random(f"programs {seed}")
    while True:
        for difficulty in difficulties:
            family = draw.choice(_FAMILIES[difficulty])
            yield family.__name__.strip("_"), family(draw)


# ---- families -----------------------------------------------------------------------------------


def _condition(draw: random.Random, *names: str) -> str:
    """A question about one or two of the names."""
    name = draw.choice(names)
    kind = draw.randrange(4)
    if kind == 0:
        divisor = draw.randint(2, 6)
        return f"{name} % {divisor} == {draw.randrange(divisor)}"
    compared = draw.choice(("<", ">", "<=", ">=", "==", "!="))
    if kind == 1 and len(names) > 1:
        other = draw.choice([one for one in names if one != name])
        return f"{name} {compared} {other}"
    return f"{name} {draw.choice(('<', '>', '<=', '>='))} {draw.randint(-3, 12)}"


def _value(draw: random.Random, *names: str) -> str:
    """A small expression over the names."""
    a, b = draw.choice(names), draw.choice((*names, str(draw.randint(1, 9))))
    return draw.choice(
        (f"{a} + {b}", f"{a} - {b}", f"{a} * {draw.randint(2, 9)}", f"{a} * {b}",
         f"{a} % {draw.randint(2, 9)}", f"{a} // {draw.randint(2, 9)}", f"{b} - {a}")
    )  # fmt: skip


def _update(draw: random.Random, total: str, *names: str) -> str:
    kind = draw.choice(("+=", "-=", "+=", "="))
    if kind == "=":
        modulus = draw.choice((97, 101, 997, 1009))
        return f"{total} = ({total} * {draw.randint(2, 9)} + {draw.choice(names)}) % {modulus}"
    return f"{total} {kind} {_value(draw, *names)}"


def _branch(draw: random.Random) -> str:
    return f"""\
def f(x, y):
    if {_condition(draw, "x", "y")}:
        return {_value(draw, "x", "y")}
    return {_value(draw, "y", "x")}"""


def _three_ways(draw: random.Random) -> str:
    return f"""\
def f(x, y):
    if {_condition(draw, "x", "y")}:
        t = {_value(draw, "x", "y")}
    elif {_condition(draw, "y", "x")}:
        t = {_value(draw, "x", "y")}
    else:
        t = {_value(draw, "y", "x")}
    return t"""


def _chain(draw: random.Random) -> str:
    return f"""\
def f(x, y):
    t = {_value(draw, "x", "y")}
    if {_condition(draw, "t", "x", "y")}:
        t = {_value(draw, "t", "y")}
    return t {draw.choice("+-*")} {draw.choice(("x", "y", str(draw.randint(2, 9))))}"""


def _count(draw: random.Random) -> str:
    return f"""\
def f(n):
    t = {draw.randint(0, 9)}
    for i in range({draw.randint(0, 2)}, n):
        if {_condition(draw, "i", "t")}:
            {_update(draw, "t", "i")}
    return t"""


def _either(draw: random.Random) -> str:
    return f"""\
def f(n):
    t = {draw.randint(0, 9)}
    for i in range(1, n + 1):
        if {_condition(draw, "i", "t")}:
            {_update(draw, "t", "i")}
        else:
            {_update(draw, "t", "i")}
    return t"""


def _digits(draw: random.Random) -> str:
    base = draw.randint(2, 12)
    return f"""\
def f(n):
    t = {draw.randint(0, 9)}
    while n > 0:
        d = n % {base}
        if {_condition(draw, "d")}:
            {_update(draw, "t", "d")}
        n = n // {base}
    return t"""


def _fold(draw: random.Random) -> str:
    return f"""\
def f(xs):
    t = {draw.randint(0, 9)}
    for x in xs:
        if {_condition(draw, "x", "t")}:
            {_update(draw, "t", "x")}
    return t"""


def _nested(draw: random.Random) -> str:
    leave = draw.choice(("break", "continue"))
    return f"""\
def f(n):
    t = {draw.randint(0, 9)}
    for i in range(1, n):
        for j in range({draw.choice(("i", "1", "2"))}, i + {draw.randint(2, 5)}):
            if {_condition(draw, "j", "t")}:
                {leave}
            {_update(draw, "t", "i", "j")}
    return t"""


def _recurrence(draw: random.Random) -> str:
    a, b = draw.randint(0, 9), draw.randint(0, 9)
    modulus = draw.choice((97, 101, 997, 1009))
    return f"""\
def f(n):
    a = {a}
    b = {b}
    for i in range(n):
        if {_condition(draw, "i", "a", "b")}:
            c = (a * {draw.randint(1, 9)} + b * {draw.randint(1, 9)}) % {modulus}
        else:
            c = (a + b * {draw.randint(2, 9)} + i) % {modulus}
        a = b
        b = c
    return b"""


def _orbit(draw: random.Random) -> str:
    divisor = draw.choice((2, 3))
    return f"""\
def f(n):
    t = 0
    while n > {draw.randint(1, 4)} and t < {draw.randint(20, 60)}:
        if n % {divisor} == 0:
            n = n // {divisor}
        else:
            n = n * {draw.randint(2, 5)} + {draw.randint(1, 5)}
        t += {draw.randint(1, 3)}
    return {draw.choice(("t", "t + n % 10", "n % 1000 - t"))}"""


def _runs(draw: random.Random) -> str:
    return f"""\
def f(xs, m):
    best = 0
    run = 0
    for x in xs:
        if {_condition(draw, "x", "m")}:
            run += {draw.choice(("1", "x", "2"))}
        elif {_condition(draw, "x", "run")}:
            run = {draw.randint(0, 3)}
        if run > best:
            best = run
    return best {draw.choice("+-*")} {draw.choice(("run", "m", str(draw.randint(2, 9))))}"""


_FAMILIES: dict[str, tuple[Callable[[random.Random], str], ...]] = {
    "easy": (_branch, _three_ways, _chain),
    "medium": (_count, _either, _digits, _fold),
    "hard": (_nested, _recurrence, _orbit, _runs),
}


# ---- tests --------------------------------------------------------------------------------------


def _assertions(
    program: str, draw: random.Random
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """(kinds, assertions); None: what the program computes is not worth a test."""
    names: dict[str, Any] = {}
    exec(program, names)
    tests: dict[str, str] = {}
    values: dict[str, int] = {}
    for kind, arguments in _calls(program, draw):
        evaluated = [eval(argument) for argument in arguments]
        value = names["f"](*evaluated)
        if abs(value) > 10**12:  # a number to copy, not to compute
            continue
        called = ", ".join(arguments)
        values[called] = value
        tests.setdefault(f"assert f({called}) == {value}", kind)
    if len(set(values.values())) < 3 or set(tests.values()) != set(KINDS):
        return None
    if undetected(program, "f", values):
        return None
    return tuple(tests.values()), tuple(tests)


def _calls(program: str, draw: random.Random) -> Iterator[tuple[str, list[str]]]:
    """Arguments as texts: three of the everyday, the edges, and two that take their time."""
    parameters = program.partition("(")[2].partition(")")[0].split(", ")
    numbers = sorted({int(n) for n in re.findall(r"\d+", program) if int(n) < 50})

    def everyday(name: str) -> str:
        if name == "xs":
            return str([draw.randint(-5, 15) for _ in range(draw.randint(3, 8))])
        return str(draw.randint(2, 30))

    def edge(name: str, number: int) -> str:
        if name == "xs":
            return "[]" if number <= 0 else f"[{number}]"
        return str(number)

    def large(name: str) -> str:
        if name == "xs":
            return f"[(i * {draw.randint(3, 40)}) % 101 - 30 for i in range(1000)]"
        loops = "for" in program
        return str(draw.randint(150, 300) if loops else draw.randint(10**4, 10**5))

    for _ in range(3):
        yield "basic", [everyday(name) for name in parameters]
    for number in (0, 1, -1):
        yield "boundary", [edge(name, number) for name in parameters]
    threshold = draw.choice(numbers or [5])
    for number in (threshold, threshold + 1):
        yield "boundary", [edge(p, number) if i == 0 else everyday(p)
                           for i, p in enumerate(parameters)]  # fmt: skip
    for _ in range(2):
        yield "large", [large(name) for name in parameters]
