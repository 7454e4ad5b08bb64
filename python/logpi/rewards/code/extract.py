"""The program in a completion, found by parsing and never by running."""

from __future__ import annotations

import ast
import textwrap
import warnings
from collections.abc import Collection, Iterator

MAX_CHARACTERS = 1 << 16  # of a program
MAX_BLOCKS = 16  # that are looked at, from the end of the completion that counts
_PYTHON = ("", "python", "py", "python3")
_DEFINES = ("def ", "lambda", "class ", "import ")


def extract_program(
    completion: str, names: str | Collection[str] = (), *, block: str = "last"
) -> str | None:
    """The last (or first) fenced block that is Python and binds one of the names.

    Args:
        completion: of a model. A block that was never closed ends with it; a completion without
            a fence may be a program as a whole. Blocks in another language do not count.
        names: what the tests call; none: any function or class will do.
        block: "last" or "first".

    Returns:
        The program, or None: then there is nothing to run.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    blocks = list(_fenced(completion)) if "```" in completion else [completion]
    blocks = blocks[-MAX_BLOCKS:][::-1] if block == "last" else blocks[:MAX_BLOCKS]
    return next((text for text in blocks if _is_program(text, names)), None)


def _fenced(completion: str) -> Iterator[str]:
    language, lines = None, []
    for line in completion.split("\n"):
        mark = line.strip()
        if not mark.startswith("```"):
            lines.append(line)
            continue
        if language in _PYTHON:
            yield textwrap.dedent("\n".join(lines))
        opens = language is None or mark != "```"  # an opening fence ends the block before it
        language = mark.strip("`").strip().lower() if opens else None
        lines = []
    if language in _PYTHON:
        yield textwrap.dedent("\n".join(lines))


def _is_program(text: str, names: tuple[str, ...]) -> bool:
    # Most texts without a program end here, before anything is parsed.
    if len(text) > MAX_CHARACTERS or not any(word in text for word in names or _DEFINES):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    bound = set(_bound(tree))
    return not bound.isdisjoint(names) if names else bool(bound)


def _bound(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.alias):
            yield node.asname or node.name
