"""Charts say what the function does: they are run, box by box, against it."""

from __future__ import annotations

import ast
import re
import sys
from itertools import islice
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from logpi.rewards.code import Limits, ProgramTests
from logpi.rewards.code.flowchart import flowchart
from logpi.rewards.code.mutants import mutants, undetected
from logpi.rewards.code.problems import DIFFICULTIES, KINDS, Problem, problems, programs


def run_chart(mermaid: str, arguments: list[Any]) -> Any:
    """Follows the arrows of a Mermaid text; knows nothing of how it was made."""
    lines = mermaid.split("\n")
    assert lines[0] == "flowchart TD"
    boxes, arrows = {}, {}
    for line in lines[1:]:
        if box := re.fullmatch(r'    (\w+)(\(\[|\[|\{)"(.*)"(\]\)|\]|\})', line):
            text = box[3].replace("#quot;", '"').removeprefix("return ")
            boxes[box[1]] = (box[2], text, _compiled(box[2], text))
        else:
            arrow = re.fullmatch(r"    (\w+) -->(?:\|(yes|no)\|)? (\w+)", line)
            assert arrow, line
            assert (arrow[1], arrow[2]) not in arrows
            arrows[arrow[1], arrow[2]] = arrow[3]
    (start,) = [name for name in boxes if name not in arrows.values()]
    parameters = re.fullmatch(r"\w+\((.*)\)", boxes[start][1])[1].split(", ")
    names = dict(zip(parameters, arguments, strict=True))
    here = arrows[start, None]
    while True:
        shape, _, code = boxes[here]
        if shape == "([":
            return eval(code, names)
        if shape == "{":
            here = arrows[here, "yes" if eval(code, names) else "no"]
        else:
            exec(code, names)
            here = arrows[here, None]


def _compiled(shape: str, text: str) -> CodeType:
    if shape == "{":
        assert text.endswith("?")
        text = text[:-1]
    return compile(text, "<box>", "exec" if shape == "[" else "eval")


def calls(problem: Problem) -> list[list[Any]]:
    trees = [ast.parse(test).body[0].test.left for test in problem.test]  # type: ignore[attr-defined]
    return [[eval(ast.unparse(argument)) for argument in tree.args] for tree in trees]


SEEDS = (0, 1)
MANY = [problem for seed in SEEDS for problem in problems(60, seed=seed)]


def test_a_chart_does_what_its_program_does() -> None:
    for problem in MANY:
        names: dict[str, Any] = {}
        exec(problem.canonical_solution, names)
        mermaid = problem.chart.mermaid()
        for arguments in calls(problem):
            assert run_chart(mermaid, list(arguments)) == names["f"](*arguments), problem


PROGRAMS = {
    "no return": "def f(x):\n    x += 1",
    "a bare return": "def f(x):\n    if x:\n        return\n    return x + 1",
    "down": "def f(x):\n    t = 0\n    for i in range(9, x, -2):\n        t += i * i\n    return t",
    "break and continue": (
        "def f(x):\n    t = 0\n    for i in range(9):\n        if i % 3 == 0:\n            continue"
        "\n        if i > x:\n            break\n        t += i\n    return t"
    ),
    "while with both": (
        "def f(x):\n    t = 0\n    while True:\n        t += 1\n        if t % 2:\n"
        "            continue\n        if t > x:\n            break\n    return t"
    ),
    "a nested list loop": (
        "def f(x):\n    t = 0\n    for a in [1, 2, x]:\n        for b in 'ab\"c':\n"
        "            t += a * ord(b)\n    return t"
    ),
    "its counter is taken": "def f(k):\n    i = 1\n    for c in [k]:\n        i += c\n    return i",
    "an if without end": "def f(x):\n    if x > 1:\n        pass\n    return x",
    "a docstring": 'def f(x):\n    """Adds one."""\n    return x + 1',
    "a call": "def f(x):\n    a = []\n    a.append(x)\n    return a",
    "everything returns": "def f(x):\n    if x > 1:\n        return 1\n    else:\n        return 2",
    "a loop returns": "def f(x):\n    for i in range(x):\n        return i\n    return -1",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_statements_of_every_kind(name: str) -> None:
    names: dict[str, Any] = {}
    exec(PROGRAMS[name], names)
    mermaid = flowchart(PROGRAMS[name]).mermaid()
    for x in range(12):
        assert run_chart(mermaid, [x]) == names["f"](x)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("x = 1", "expected a function, got none"),
        ("def f(x):\n    with x: pass", "expected assignments, if, for, .* got 'with x:"),
        ("def f(x):\n    yield x", "got 'yield x'"),
        ("def f(x):\n    for a, b in x: pass", "got 'for a, b in x:"),
        ("def f(x):\n    while x: pass\n    else: x = 1", "got 'while x:"),
        ("def f(x):\n    return 1\n    x = 2", "expected no dead code, got 'x = 2'"),
        ("def f(x):\n    for i in range(x): pass\n    return i", "expected i in its loop alone"),
        ("def f(x):\n    for i in range(x): x -= 1", "expected a loop that leaves x as it is"),
        ("def f(x):\n    for i in x: x.append(i)", "expected a loop that leaves x as it is"),
        ("def f(x):\n    for i in x: x[0] = i", "expected a loop that leaves x as it is"),
        ("def f(x):\n    for i in range(9): i += 1", "expected a loop that leaves i as it is"),
        ("def f(x):\n    for i in range(0, 9, x): pass", "expected a range with a whole step"),
    ],
)  # fmt: skip
def test_what_has_no_chart_is_refused(program: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"program: .*{message}"):
        flowchart(program)


def test_problems_are_a_function_of_their_seed() -> None:
    assert problems(30, seed=3) == problems(60, seed=3)[:30]
    assert problems(30, seed=3) != problems(30, seed=4)
    programs = [problem.canonical_solution for problem in problems(600)]
    assert len(set(programs)) == 600
    assert [problem.difficulty for problem in problems(6)] == [*DIFFICULTIES, *DIFFICULTIES]
    assert {problem.difficulty for problem in problems(5, difficulties=("hard",))} == {"hard"}
    with pytest.raises(ValueError, match="difficulties: expected 'easy' or 'medium' or 'hard'"):
        problems(1, difficulties=("trivial",))


def test_programs_are_of_the_families_of_their_difficulty() -> None:
    families = {
        d: {p.task_id.split("/")[2] for p in MANY if p.difficulty == d} for d in DIFFICULTIES
    }
    drawn = list(islice(programs(seed=1), 300))
    assert drawn == list(islice(programs(seed=1), 300)) != list(islice(programs(seed=2), 300))
    for place, (family, program) in enumerate(drawn):
        assert family in families[DIFFICULTIES[place % 3]]
        assert flowchart(program).nodes
    assert len({program for _, program in drawn}) > 280
    with pytest.raises(ValueError, match="difficulties"):
        next(programs(difficulties=("tricky",)))


def test_every_problem_has_tests_of_each_kind() -> None:
    for problem in MANY:
        assert set(problem.kinds) == set(KINDS)
        assert len(problem.kinds) == len(problem.test) >= 3
        values = {test.rpartition(" == ")[2] for test in problem.test}
        assert len(values) >= 3  # no constant passes


def without_a_part(program: str) -> list[str]:
    """Line by line: a statement passed over, a question answered for good. By text, not by ast."""
    lines = program.split("\n")
    shorter = []
    for place, line in enumerate(lines[1:], 1):
        indent, word = re.match(r"( *)(\w+)", line).groups()  # type: ignore[union-attr]
        if word in ("if", "elif"):
            changed = [f"{indent}{word} {answer}:" for answer in (True, False)]
        else:
            changed = [] if line.endswith(":") else [indent + "pass"]
        shorter += ["\n".join([*lines[:place], new, *lines[place + 1 :]]) for new in changed]
    return shorter


@pytest.mark.skipif(sys.platform != "linux", reason="sandbox: expected Linux")
def test_nothing_can_be_left_out_of_a_solution_unseen() -> None:
    limits = Limits(cpu_seconds=1, wall_seconds=20.0)  # some never end
    reward = ProgramTests(strict=False, limits=limits)
    for_loops = [p for p in MANY if "while" not in p.canonical_solution][:33]
    some = [*for_loops, *(p for p in MANY if "while" in p.canonical_solution)][:35]
    programs = [(text, p) for p in some for text in without_a_part(p.canonical_solution)]
    rewards = reward([text for text, _ in programs], test=[p.test for _, p in programs])
    unseen = [text for (text, _), r in zip(programs, rewards, strict=True) if r == 1.0]
    assert not unseen, unseen[0]


DEAD = {  # mutants, and how many of them no x in [0, 12) tells apart
    "def f(x):\n    t = x\n    if x > 99:\n        t = 0\n    return t": (5, 2),
    "def f(x):\n    t = x\n    t += x - x\n    return t": (3, 1),
    "def f(x):\n    t = 5\n    t = x\n    return t": (3, 1),
    "def f(x):\n    t = 0\n    while t < x and t < 99:\n        t += 2\n    return t": (5, 1),
    "def f(x):\n    while x > 0:\n        x -= 3\n    return x": (2, 0),  # one never ends
}


@pytest.mark.parametrize("program", DEAD)
def test_what_no_test_sees_is_found(program: str) -> None:
    names: dict[str, Any] = {}
    exec(program, names)
    values = {str(x): names["f"](x) for x in range(12)}
    dead = undetected(program, "f", values)
    assert (len(list(mutants(program))), dead) == DEAD[program]
    assert undetected(program, "f", values | {"100": 1.5}) == 0  # no mutant answers that


def test_harder_charts_are_larger() -> None:
    sizes = {
        difficulty: [len(p.chart.nodes) for p in MANY if p.difficulty == difficulty]
        for difficulty in DIFFICULTIES
    }
    means = [sum(sizes[difficulty]) / len(sizes[difficulty]) for difficulty in DIFFICULTIES]
    assert means == sorted(means)


def test_prompts_hold_the_chart_and_not_the_program() -> None:
    problem = MANY[1]
    assert problem.chart.mermaid() in problem.prompt
    assert problem.starter_code in problem.prompt
    assert "flowchart TD" not in problem.picture_prompt
    assert problem.canonical_solution not in problem.prompt


@pytest.mark.skipif(sys.platform != "linux", reason="sandbox: expected Linux")
def test_solutions_earn_everything_and_others_do_not() -> None:
    reward = ProgramTests(strict=False)
    some = MANY[:45]
    columns = {"test": [problem.test for problem in some], "entry_point": ["f"] * len(some)}
    solutions = [f"```python\n{problem.canonical_solution}\n```" for problem in some]
    assert reward(solutions, **columns) == [1.0] * len(some)
    turned = [solutions[(i + 3) % len(some)] for i in range(len(some))]  # another's of the same
    assert max(reward(turned, **columns)) < 1.0


def test_charts_are_drawn(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    seen = set()
    for problem in MANY[:3]:
        path = tmp_path / "chart.png"
        problem.chart.draw(path)
        once = path.read_bytes()
        problem.chart.draw(path)
        assert path.read_bytes() == once
        pixels = image.imread(path)
        assert pixels.shape[0] > 50 * len(problem.chart.nodes)
        assert (pixels[..., :3].min(axis=2) < 0.5).mean() > 0.002  # there is ink
        border = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
        assert all((edge[..., :3] == 1.0).all() for edge in border)  # and none is cut off
        seen.add(once)
    assert len(seen) == 3


def test_no_two_long_arrows_share_a_lane() -> None:
    from logpi.rewards.code.drawing import _lanes

    for problem in MANY:
        long = [e for e in problem.chart.edges if e.target > e.source + 1]
        lanes = _lanes(long)
        for a in long:
            for b in long:
                if a != b and lanes[a] == lanes[b]:
                    assert a.target < b.source or b.target < a.source
