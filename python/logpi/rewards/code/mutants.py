"""Programs with one part taken out: tests that cannot tell them from the whole do not test it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

_STATEMENTS = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr, ast.Return, ast.Break,
               ast.Continue)  # fmt: skip
_MOST_ROUNDS = 1_000  # of a program's while loops; what is left out may be what ends them


def mutants(program: str) -> Iterator[str]:
    """The program without each of its statements in turn, with each `if` always taken and never,
    and without each part of an `and` or `or`."""
    tree = ast.parse(program)
    for _ in _mutated(tree):
        yield ast.unparse(tree)


def undetected(program: str, entry_point: str, values: Mapping[str, Any]) -> int:
    """How many mutants answer every call as the program does.

    Args:
        program: runs here and not in a sandbox: one of ours, whose while loops end within a
            thousand rounds.
        entry_point: the function that is called.
        values: by arguments: {"3, [4]": 12}.
    """
    tree = ast.parse(program)
    for loop in [node for node in ast.walk(tree) if isinstance(node, ast.While)]:
        loop.body.insert(0, _COUNT)
    return sum(_answers(tree, entry_point, values) for _ in _mutated(tree))


_COUNT = ast.parse("_count_round()").body[0]


def _mutated(tree: ast.Module) -> Iterator[None]:
    """Changes the tree in place for each mutant, and back."""
    for parent in list(ast.walk(tree)):
        for _, value in ast.iter_fields(parent):
            for place, node in enumerate(value if isinstance(value, list) else ()):
                if isinstance(node, _STATEMENTS) and node is not _COUNT:
                    value[place] = ast.copy_location(ast.Pass(), node)
                    yield
                    value[place] = node
        if isinstance(parent, ast.If):
            test = parent.test
            for always in (True, False):
                parent.test = ast.copy_location(ast.Constant(always), test)
                yield
            parent.test = test
        elif isinstance(parent, ast.BoolOp):
            neutral = ast.copy_location(ast.Constant(isinstance(parent.op, ast.And)), parent)
            for place, part in enumerate(parent.values):
                parent.values[place] = neutral
                yield
                parent.values[place] = part


def _answers(tree: ast.Module, entry_point: str, values: Mapping[str, Any]) -> bool:
    rounds = 0

    def count_round() -> None:
        nonlocal rounds
        rounds += 1
        if rounds > _MOST_ROUNDS:
            raise TimeoutError

    names: dict[str, Any] = {"_count_round": count_round}
    exec(compile(tree, "<mutant>", "exec"), names)
    try:
        for arguments, value in values.items():
            rounds = 0
            if eval(f"{entry_point}({arguments})", names) != value:
                return False
    except Exception:  # whatever it is, the program does not raise it
        return False
    return True
