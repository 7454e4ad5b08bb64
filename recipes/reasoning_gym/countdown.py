"""Every solution of a countdown question, and when two of them are the same."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from itertools import combinations
from typing import Any

_ARITHMETIC = re.compile(r"[\d+\-*/() ]{1,64}")  # all that may reach an evaluator

Key = tuple[Any, ...]
Entry = dict[str, Any]


def canonical(text: str) -> Key | None:
    """What is left of an expression without order, brackets and spaces; None: no arithmetic.

    Equal for `3 + (5 - 1)` and `5 - 1 + 3`; not for `2 * 3 + 2` and `(3 + 1) * 2`, nor where a
    number is 1 at another place: `6 * 1 / 2` and `6 / 2 / 1` are two solutions.
    """
    tree = _parsed(text)
    return None if tree is None else _key(tree)


def solves(text: str, numbers: list[int], target: int) -> bool:
    """Uses each number once and comes to the target, in exact arithmetic."""
    tree = _parsed(text)
    if tree is None:
        return False
    used = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return sorted(used) == sorted(numbers) and _value(tree) == target


def is_arithmetic(text: str) -> bool:
    """Whole numbers, four operations and brackets: safe to evaluate (`9**9**9` is not)."""
    return _parsed(text) is not None


def solutions(numbers: list[int], target: int) -> list[str]:
    """One expression for each different solution, sorted."""
    return _solutions(tuple(sorted(numbers))).get(Fraction(target), [])


def with_solutions(entries: list[Entry], each: int, *, seed: int) -> list[Entry]:
    """Every entry `each` times at the most, with different solutions drawn at random."""
    draw = random.Random(seed)
    told = []
    for entry in entries:
        ways = solutions(entry["metadata"]["numbers"], entry["metadata"]["target"])
        ways = draw.sample(ways, min(each, len(ways)))
        told += [entry | {"answer": answer} for answer in ways]
    return told


def _parsed(text: str) -> ast.expr | None:
    if not _ARITHMETIC.fullmatch(text) or "**" in text or "//" in text:
        return None
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        return None
    allowed = ast.BinOp, ast.Constant, ast.operator
    return tree if all(isinstance(node, allowed) for node in ast.walk(tree)) else None


def _value(tree: ast.expr) -> Fraction | None:
    """None where something is divided by 0."""
    if isinstance(tree, ast.Constant):
        return Fraction(tree.value)
    left, right = _value(tree.left), _value(tree.right)
    if left is None or right is None:
        return None
    if isinstance(tree.op, ast.Add):
        return left + right
    if isinstance(tree.op, ast.Sub):
        return left - right
    if isinstance(tree.op, ast.Mult):
        return left * right
    return left / right if right else None


def _key(tree: ast.expr) -> Key:
    """A number, a sum ("+", plus, minus) or a product ("*", times, over), operands sorted."""
    if isinstance(tree, ast.Constant):
        return (tree.value,)
    kind = "+" if isinstance(tree.op, ast.Add | ast.Sub) else "*"
    direct: list[Key] = []
    inverse: list[Key] = []
    _collect(tree, kind, direct, inverse)
    return (kind, tuple(sorted(direct, key=repr)), tuple(sorted(inverse, key=repr)))


def _collect(tree: ast.expr, kind: str, direct: list[Key], inverse: list[Key]) -> None:
    operations = (ast.Add, ast.Sub) if kind == "+" else (ast.Mult, ast.Div)
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, operations):
        _collect(tree.left, kind, direct, inverse)
        turned = isinstance(tree.op, ast.Sub | ast.Div)
        _collect(tree.right, kind, *((inverse, direct) if turned else (direct, inverse)))
    else:
        direct.append(_key(tree))


@cache
def _solutions(numbers: tuple[int, ...]) -> dict[Fraction, list[str]]:
    """Of every target that these numbers reach."""
    found: dict[Fraction, list[str]] = {}
    for value, text in sorted(_different(numbers)):
        found.setdefault(value, []).append(text)
    return found


@cache
def _different(numbers: tuple[int, ...]) -> list[tuple[Fraction, str]]:
    """(value, text) of every expression over all the numbers, one of each canonical form."""
    kept: dict[Key, tuple[Fraction, str]] = {}
    for value, text in _expressions(numbers):
        key = canonical(text)
        assert key is not None
        if key not in kept or len(text) < len(kept[key][1]):  # the way with the fewest brackets
            kept[key] = value, text
    return list(kept.values())


def _expressions(numbers: tuple[int, ...]) -> Iterator[tuple[Fraction, str]]:
    if len(numbers) == 1:
        yield Fraction(numbers[0]), str(numbers[0])
    places = range(len(numbers))
    for size in range(1, len(numbers)):
        for chosen in combinations(places, size):
            rest = tuple(numbers[i] for i in places if i not in chosen)
            for left, a in _different(tuple(numbers[i] for i in chosen)):
                for right, b in _different(rest):
                    if 0 in chosen:  # the other order is the same expression
                        yield left + right, f"{a}+{b}"
                        yield left * right, f"{_bracketed(a, '+-')}*{_bracketed(b, '+-')}"
                    yield left - right, f"{a}-{_bracketed(b, '+-')}"
                    if right:
                        yield left / right, f"{_bracketed(a, '+-')}/{_bracketed(b, '+-*/')}"


def _bracketed(text: str, operations: str) -> str:
    """In brackets, if one of the operations stands outside of any."""
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if not depth and character in operations:
            return f"({text})"
    return text
