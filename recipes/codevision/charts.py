"""Flowcharts and their programs, split so that no function is in two places."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from logpi.rewards.code.flowchart import flowchart
from logpi.rewards.code.problems import Problem, problems, programs

Entry = dict[str, Any]  # question (the chart), answer (the program), and the fields of its Problem

FAMILIES = {"easy": 3, "medium": 4, "hard": 4}  # of `logpi.rewards.code.problems`
# Where the tokenizer cuts. A number, a name or an operator is one token, the same in a chart and in
# its program, so that it can be copied; so are what lies between two boxes, a line's end with the
# next indent, and the arrows of a common shape.
PIECES = (
    r'flowchart TD\n    n0\(\["f\([a-z, ]+\)"\]\)\n    n1(?:\(\[|\[|\{)"'
    r'|(?:"\]\)|"\]|\?"\})\n    n\d+(?:\(\[|\[|\{)"'
    r'|"\]\)(?:\n    n\d+ -->(?:\|\w+\|)? n\d+)+ ?|def f\([a-z, ]+\):\n    '
    r"|(?:if|elif|while|for|return) |else:\n *|:?\n *"
    r"| (?:[-+*/%<>=!]+|and|in) |range\(|len\(|, |\d+|[a-z]+|[()\[\]]"
)
_PROBES: dict[str, tuple[Any, ...]] = {  # by parameter: what functions are told apart by
    "x": (-7, 0, 1, 5, 12, 29, 100), "y": (4, -3, 9, 0, 12, 50, 33),
    "n": (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 1000), "m": (3, 0, 12, -4),
    "xs": ([], [4, -2, 9, 12, 0, 7], [1, 1, 2, 3, 5, 8, -13], [15, 14, 3, 6, -5, 10, 2]),
}  # fmt: skip
_SLIPS: tuple[tuple[str, Callable[[str, random.Random], str]], ...] = (  # where; what is there then
    (r"[<>=!]=|[<>]", lambda found, _: _MIRRORED[found]),
    (r"\d+", lambda found, draw: str(abs(int(found) + draw.choice((-1, 1))))),
    (r" [+-] |[+-]=", lambda found, _: found.translate(str.maketrans("+-", "-+"))),
)
_MIRRORED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}


@dataclass(frozen=True)
class Splits:
    """Two lists of entries that share no structure and no function.

    Attributes:
        heldout: never trained on, as many of each difficulty.
        rl: for GRPO, which sees the charts and, through the sandbox alone, what programs do.
    """

    heldout: list[Entry]
    rl: list[Entry]


def splits(*, seed: int, heldout: int, rl: int) -> Splits:
    """Problems of `logpi.rewards.code` by what their programs look like and by what they do.

    The structures of a family are dealt in turn, half of them to neither split: `to_learn_from`
    has those. A program that answers every probe as one of another split does is left out.

    Raises:
        ValueError: sizes that are no multiple of 36: as many of each family of a difficulty.
    """
    sizes = {"rl": rl, "heldout": heldout}
    for name, size in sizes.items():
        if size < 36 or size % 36:
            raise ValueError(f"{name}: expected a multiple of 36, got {size}")
    number = 6 * sum(sizes.values())
    while True:
        found = _dealt(problems(number, seed=seed), sizes)
        if all(len(found[name]) == size for name, size in sizes.items()):
            return Splits(**found)
        number += number // 2


def _dealt(drawn: list[Problem], sizes: dict[str, int]) -> dict[str, list[Entry]]:
    """As much of each split as there is in these problems."""
    shares = {"neither": sum(sizes.values())} | sizes
    structures: dict[str, dict[str, str]] = {}  # of a family, the split of each
    functions: dict[Any, str] = {}
    kept: Counter[tuple[str, str]] = Counter()
    found: dict[str, list[Entry]] = {name: [] for name in sizes}
    for problem in drawn:
        family = problem.task_id.rpartition("/")[2]
        dealt = structures.setdefault(family, {})
        so_far = Counter(dealt.values())
        next_split = min(shares, key=lambda name: so_far[name] / shares[name])
        split = dealt.setdefault(structure(problem.canonical_solution), next_split)
        wanted = sizes.get(split, 0) // len(FAMILIES) // FAMILIES[problem.difficulty]
        if kept[split, family] < wanted:
            does = behaviour(problem.canonical_solution)
            if functions.setdefault(does, split) == split:
                kept[split, family] += 1
                found[split].append(entry(problem))
    return found


def entry(problem: Problem) -> Entry:
    return {
        "question": problem.chart.mermaid(),
        "answer": problem.canonical_solution,
        **asdict(problem),
        "test": list(problem.test),
    }


def structure(program: str) -> str:
    """The program without its numbers and without which comparison it makes."""
    return re.sub(r"[<>=!]=|[<>]", "?", re.sub(r"\d+", "_", program))


def behaviour(program: str) -> tuple[Any, ...]:
    """What the program (one of ours: it runs here) answers to the probes of its parameters."""
    names: dict[str, Any] = {}
    exec(program, names)
    parameters = program.partition("(")[2].partition(")")[0].split(", ")
    calls = zip(*(_PROBES[name] for name in parameters), strict=False)
    return tuple(parameters), *(names["f"](*arguments) for arguments in calls)


# ---- what the warm-up learns from ----------------------------------------------------------------


def to_learn_from(found: Splits, *, seed: int) -> Iterator[Entry]:
    """Endless charts with their programs, of the structures that no other split has and as many of
    each family.

    A chart that is hardly ever the same twice cannot be learnt by heart, only read. The programs
    have no tests, and nobody runs them: some never end.
    """
    taken = {structure(entry["answer"]) for entry in found.heldout + found.rl}
    kept: Counter[str] = Counter()
    for family, program in programs(seed=seed):
        ahead = kept[family] > kept.total() / sum(FAMILIES.values())
        if not ahead and structure(program) not in taken:
            kept[family] += 1
            yield {"question": flowchart(program).mermaid(), "answer": program}


def with_slips(entries: Iterable[Entry], fraction: float, *, seed: int) -> Iterator[Entry]:
    """The entries, `fraction` of the programs with one slip: a comparison that takes in its edge or
    does not, a number one off, a plus for a minus."""
    draw = random.Random(f"slips {seed}")
    for one in entries:
        slips = draw.random() < fraction
        yield one | {"answer": with_a_slip(one["answer"], draw)} if slips else one


def with_a_slip(program: str, draw: random.Random) -> str:
    """The program with one slip, below its first line."""
    head, body = program.split("\n", 1)
    places = [(list(re.finditer(pattern, body)), other) for pattern, other in _SLIPS]
    matches, other = draw.choice([place for place in places if place[0]])
    match = draw.choice(matches)
    return f"{head}\n{body[: match.start()]}{other(match[0], draw)}{body[match.end() :]}"
