"""The process that runs the tests. The program's functions are stand-ins here: a call of one
crosses to the other process as data, and so does what it returns, so that no expected value ever
leaves this process and nothing of the program ever enters it but numbers, texts and containers.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

from . import wire
from .program import MODULES


class Unit(NamedTuple):
    """A statement of the tests; code None: it could not be read."""

    code: Any
    source: str
    counts: bool  # it is an assertion; otherwise it prepares some


class ProgramError(Exception):
    """What the program raised, if it is not of a built-in class; or the program is gone."""


class Remote:
    """Something of the program's: it can be called and iterated, and nothing else."""

    __slots__ = ("_at", "_call")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, at: tuple[str | int, ...], call: Callable[..., Any]) -> None:
        self._at, self._call = at, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self._at, "call", args, kwargs)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._call(self._at, "list"))

    def __getattr__(self, name: str) -> Remote:
        if name.startswith("__"):
            raise AttributeError(name)
        return Remote((*self._at, name), self._call)

    def _no_data(self, *_: object) -> NoReturn:
        raise TypeError("expected data from the program, got an object of its own")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __len__ = _no_data


# ---- what is asserted ---------------------------------------------------------------------------


def units(tests: list[str], entry_point: str | None) -> list[Unit]:
    """The statements in order; `check(candidate)` is taken apart, so that its assertions count."""
    trees: list[ast.Module | str] = []
    for text in tests:
        try:
            trees.append(ast.parse(text))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            trees.append(text)
    asserting = {
        node.name
        for tree in trees if isinstance(tree, ast.Module)
        for node in tree.body if isinstance(node, ast.FunctionDef) and _asserts(node, set())
    }  # fmt: skip
    found = []
    for tree in trees:
        if isinstance(tree, str):
            found.append(Unit(None, tree[:200], True))
            continue
        for node in _flat(tree.body, entry_point):
            definition = isinstance(node, (ast.FunctionDef, ast.ClassDef))
            counts = not definition and _asserts(node, asserting)
            try:
                code, source = compile(ast.Module([node], []), "<tests>", "exec"), ast.unparse(node)
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                code, source = None, str(error)
            found.append(Unit(code, source[:200], counts))
    return found


def _asserts(node: ast.AST, functions: set[str]) -> bool:
    """Whether it holds an assert, or calls a function of the tests that does."""
    return any(
        isinstance(part, ast.Assert)
        or (isinstance(part, ast.Call) and isinstance(part.func, ast.Name)
            and part.func.id in functions)
        for part in ast.walk(node)
    )  # fmt: skip


def _flat(body: list[ast.stmt], entry_point: str | None) -> Iterator[ast.stmt]:
    taken_apart = False
    for node in body:
        if (
            entry_point is not None
            and isinstance(node, ast.FunctionDef)
            and node.name == "check"
            and len(node.args.args) == 1
            and not any(isinstance(part, ast.Return) for part in ast.walk(node))
        ):
            taken_apart = True
            candidate = f"{node.args.args[0].arg} = {entry_point}"
            yield from ast.parse(candidate).body
            yield from node.body
        elif taken_apart and _calls_check(node):
            continue
        else:
            yield node


def _calls_check(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id == "check"
    )


def names_of_the_program(tests: list[str], entry_point: str | None) -> set[str]:
    """Names that the tests use and nobody else defines: the program's own `abs` is not asked."""
    used: set[str] = set()
    bound: set[str] = set()
    for text in tests:
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                bound.add(node.name)
            elif isinstance(node, ast.arg):
                bound.add(node.arg)
            elif isinstance(node, ast.alias):
                bound.add((node.asname or node.name).split(".")[0])
    own = used - bound - set(dir(builtins)) - set(MODULES)
    return own | ({entry_point} if entry_point else set())


# ---- judging ------------------------------------------------------------------------------------


def judge(
    verdicts: int, tests: list[str], entry_point: str | None, program: int, ask: int, answers: int
) -> None:
    """Writes how many assertions there are, then one verdict each, then that all were judged."""
    statements = units(tests, entry_point)
    wire.send(verdicts, {"total": sum(unit.counts for unit in statements)})
    line = _Line(program, ask, answers)
    names: dict[str, Any] = {name: importlib.import_module(name) for name in MODULES}
    for name in names_of_the_program(tests, entry_point):
        names[name] = Remote((name,), line.call)
    names["__name__"] = "tests"
    trouble = line.started()
    for unit in statements:
        why = trouble or _execute(unit, names)
        if unit.counts:
            wire.send(verdicts, {"passed": not why, "why": why[:400]})
    wire.send(verdicts, {"done": True})


def _execute(unit: Unit, names: dict[str, Any]) -> str:
    """What went wrong, or nothing."""
    if unit.code is None:
        return f"the tests do not parse: {unit.source}"
    try:
        exec(unit.code, names)
    except AssertionError as error:
        return f"{unit.source}: failed{': ' * bool(str(error))}{error}"
    except BaseException as error:
        return f"{unit.source}: {type(error).__name__}: {error}"
    return ""


class _Line:
    """The line to the program."""

    def __init__(self, program: int, ask: int, answers: int) -> None:
        self.program, self.ask, self.answers = program, ask, answers
        self.gone = ""

    def started(self) -> str:
        """Waits until the program has run; what went wrong, or nothing."""
        try:
            self._answer()
        except BaseException as error:
            return f"the program failed: {type(error).__name__}: {error}"
        return ""

    def call(self, at: tuple[str | int, ...], do: str, args: Any = (), kwargs: Any = None) -> Any:
        coded = [wire.encode(part, _number) for part in (args, kwargs or {})]
        try:
            wire.send(self.ask, {"at": at, "do": do, "args": coded[0], "kwargs": coded[1]})
        except wire.Closed:
            self._is_gone()
        return self._answer()

    def _answer(self) -> Any:
        try:
            reply = wire.receive(self.answers)
        except wire.Closed:
            self._is_gone()
        except (ValueError, RecursionError):
            raise ProgramError("what it answered is no data") from None
        if isinstance(reply, dict) and "returned" in reply:
            return wire.decode(reply["returned"], lambda number: Remote((number,), self.call))
        if isinstance(reply, dict) and isinstance(raised := reply.get("raised"), list):
            raise _error(*map(str, raised[:2]))
        raise ProgramError("what it answered is no data")

    def _is_gone(self) -> NoReturn:
        if not self.gone:
            self.gone = "it is gone"
            for _ in range(20):  # a program that has closed the line may still run
                ended, status = os.waitpid(self.program, os.WNOHANG)
                if ended and os.WIFSIGNALED(status):
                    self.gone = f"it was killed by {signal.Signals(os.WTERMSIG(status)).name}"
                if ended:
                    break
                time.sleep(0.002)
        raise ProgramError(self.gone)


def _number(value: Any) -> int:
    """An object of the program's goes back to it as its number."""
    if type(value) is Remote and len(value._at) == 1 and isinstance(value._at[0], int):
        return value._at[0]
    raise TypeError(f"a {type(value).__name__} is no data")


def _error(name: str = "", text: str = "") -> Exception:
    """What the program raised; of a built-in class only if that takes a text alone."""
    found = getattr(builtins, name, None)
    if isinstance(found, type) and issubclass(found, Exception):
        try:
            return found(text)
        except TypeError:
            pass
    return ProgramError(f"{name}: {text}")
