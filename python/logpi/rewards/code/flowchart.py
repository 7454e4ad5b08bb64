"""Python functions as flowcharts: boxes and arrows, as Mermaid text or as a picture."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

_SHAPES = {"start": ('(["', '"])'), "return": ('(["', '"])'), "step": ('["', '"]'),
           "choice": ('{"', '"}')}  # fmt: skip


class Node(NamedTuple):
    """A box: kind is "start", "step", "choice" or "return"; depth is how far it is indented."""

    kind: str
    text: str
    depth: int


class Edge(NamedTuple):
    """An arrow from one box to another, by their places; out of a choice it says "yes" or "no"."""

    source: int
    target: int
    label: str


@dataclass(frozen=True)
class Flowchart:
    """Boxes in the order of the program, and arrows."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def mermaid(self) -> str:
        """The chart as a Mermaid `flowchart`."""
        lines = ["flowchart TD"]
        for place, node in enumerate(self.nodes):
            opening, closing = _SHAPES[node.kind]
            text = node.text.replace('"', "#quot;")
            lines.append(f"    n{place}{opening}{text}{closing}")
        for source, target, label in self.edges:
            arrow = f"-->|{label}|" if label else "-->"
            lines.append(f"    n{source} {arrow} n{target}")
        return "\n".join(lines)

    def draw(self, path: str | Path, *, dpi: int = 120) -> None:
        """The chart as a picture, PNG or whatever the suffix says. Needs matplotlib."""
        from logpi.rewards.code.drawing import draw

        draw(self, path, dpi=dpi)


def flowchart(program: str) -> Flowchart:
    """The chart of the first function of a program.

    Loops over ranges and lists become a counter, a choice and a step, so that a box is never more
    than an assignment or a question.

    Raises:
        ValueError: a statement that has no chart here (with, try, yield, an else of a loop..), or a
            loop whose chart would compute something else: one whose variable is read after it, or
            that changes what it runs over.
    """
    functions = [node for node in ast.parse(program).body if isinstance(node, ast.FunctionDef)]
    if not functions:
        raise ValueError("program: expected a function, got none")
    function = functions[0]
    builder = _Builder(function)
    builder.body(function.body, 0)
    if builder.open:
        builder.node("return", "return None", 0)
    return Flowchart(tuple(builder.nodes), tuple(builder.edges))


@dataclass
class _Loop:
    leaving: list[tuple[int, str]] = field(default_factory=list)
    going_on: list[tuple[int, str]] = field(default_factory=list)


class _Builder:
    """Adds boxes; `open` holds the arrows that still look for their target."""

    def __init__(self, function: ast.FunctionDef) -> None:
        self.function = function
        self.nodes: list[Node] = []
        self.edges: list[Edge] = []
        self.open: list[tuple[int, str]] = []
        self.loops: list[_Loop] = []
        self.names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
        parameters = ", ".join(argument.arg for argument in function.args.args)
        self.names |= {argument.arg for argument in function.args.args}
        self.node("start", f"{function.name}({parameters})", 0)

    def node(self, kind: str, text: str, depth: int) -> int:
        place = len(self.nodes)
        self.nodes.append(Node(kind, text, depth))
        self.connect(place)
        self.open = [] if kind in ("return", "choice") else [(place, "")]
        return place

    def connect(self, place: int) -> None:
        self.edges += [Edge(source, place, label) for source, label in self.open]
        self.open = []

    def body(self, statements: Sequence[ast.stmt], depth: int) -> None:
        for statement in statements:
            if not self.open:
                raise ValueError(f"program: expected no dead code, got {ast.unparse(statement)!r}")
            handler: Callable[..., None] = getattr(self, type(statement).__name__, self.unknown)
            handler(statement, depth)

    def unknown(self, statement: ast.stmt, depth: int) -> None:
        raise ValueError(
            "program: expected assignments, if, for, while, break, continue and return, got "
            f"{ast.unparse(statement)[:60]!r}"
        )

    # ---- one method a statement, by its name in ast ---------------------------------------------

    def Assign(self, statement: ast.stmt, depth: int) -> None:
        self.node("step", ast.unparse(statement), depth)

    AugAssign = AnnAssign = Assign

    def Expr(self, statement: ast.Expr, depth: int) -> None:
        if not isinstance(statement.value, ast.Constant):  # a docstring
            if not isinstance(statement.value, ast.Call):
                self.unknown(statement, depth)
            self.node("step", ast.unparse(statement), depth)

    def Pass(self, statement: ast.Pass, depth: int) -> None:
        pass

    def Return(self, statement: ast.Return, depth: int) -> None:
        value = ast.unparse(statement.value) if statement.value else "None"
        self.node("return", f"return {value}", depth)

    def If(self, statement: ast.If, depth: int) -> None:
        choice = self.node("choice", f"{ast.unparse(statement.test)}?", depth)
        self.open = [(choice, "yes")]
        self.body(statement.body, depth + 1)
        after = self.open
        self.open = [(choice, "no")]
        self.body(statement.orelse, depth + (not _is_elif(statement)))
        self.open = after + self.open

    def While(self, statement: ast.While, depth: int) -> None:
        if statement.orelse:
            self.unknown(statement, depth)
        choice = self.node("choice", f"{ast.unparse(statement.test)}?", depth)
        loop = self.inside(choice, statement.body, depth)
        self.connect(choice)
        self.open = [(choice, "no"), *loop.leaving]

    def For(self, statement: ast.For, depth: int) -> None:
        if statement.orelse or not isinstance(statement.target, ast.Name):
            self.unknown(statement, depth)
        self.check_loop(statement)
        variable = ast.unparse(statement.target)
        first, step = "0", 1
        bounds = _range(statement.iter)
        counter = variable if bounds else self.fresh()
        if bounds:
            first, last, step = bounds
        else:
            last = f"len({ast.unparse(statement.iter)})"
        self.node("step", f"{counter} = {first}", depth)
        choice = self.node("choice", f"{counter} {'<' if step > 0 else '>'} {last}?", depth)
        prelude = "" if bounds else f"{variable} = {ast.unparse(statement.iter)}[{counter}]"
        loop = self.inside(choice, statement.body, depth, prelude)
        if self.open:
            sign = "+" if step > 0 else "-"
            self.node("step", f"{counter} = {counter} {sign} {abs(step)}", depth + 1)
            self.connect(choice)
        self.open = [(choice, "no"), *loop.leaving]

    def inside(
        self, choice: int, statements: Sequence[ast.stmt], depth: int, prelude: str = ""
    ) -> _Loop:
        self.open = [(choice, "yes")]
        self.loops.append(_Loop())
        if prelude:
            self.node("step", prelude, depth + 1)
        self.body(statements, depth + 1)
        loop = self.loops.pop()
        self.open = self.open + loop.going_on
        return loop

    def Break(self, statement: ast.Break, depth: int) -> None:
        self.loops[-1].leaving += self.open
        self.open = []

    def Continue(self, statement: ast.Continue, depth: int) -> None:
        self.loops[-1].going_on += self.open
        self.open = []

    # ---- loops ----------------------------------------------------------------------------------

    def fresh(self) -> str:
        """A counter's name that the program does not use."""
        name = next(name for name in _counters() if name not in self.names)
        self.names.add(name)
        return name

    def check_loop(self, loop: ast.For) -> None:
        variable = ast.unparse(loop.target)
        inside = [
            node
            for other in ast.walk(self.function)
            if isinstance(other, ast.For) and ast.unparse(other.target) == variable
            for node in ast.walk(other)
        ]
        for node in ast.walk(self.function):
            if isinstance(node, ast.Name) and node.id == variable and node not in inside:
                raise ValueError(f"program: expected {variable} in its loop alone, got it outside")
        over = {node.id for node in ast.walk(loop.iter) if isinstance(node, ast.Name)} | {variable}
        for statement in loop.body:
            for node in ast.walk(statement):
                changes = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
                if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
                    node, changes = node.value, True
                elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    node, changes = node.func.value, True
                if changes and isinstance(node, ast.Name) and node.id in over:
                    raise ValueError(f"program: expected a loop that leaves {node.id} as it is")


def _is_elif(statement: ast.If) -> bool:
    return len(statement.orelse) == 1 and isinstance(statement.orelse[0], ast.If)


def _range(iterated: ast.expr) -> tuple[str, str, int] | None:
    """First, last and step of a range; None: something else is iterated."""
    if not (
        isinstance(iterated, ast.Call)
        and isinstance(iterated.func, ast.Name)
        and iterated.func.id == "range"
    ):
        return None
    parts = [ast.unparse(argument) for argument in iterated.args]
    first, last = ("0", parts[0]) if len(parts) == 1 else (parts[0], parts[1])
    try:
        step = int(parts[2]) if len(parts) == 3 else 1
    except ValueError:
        step = 0
    if step == 0:
        raise ValueError(f"program: expected a range with a whole step, got {parts[2]}")
    return first, last, step


def _counters() -> Sequence[str]:
    return [*"kijmpq", *(f"k{number}" for number in range(100))]
