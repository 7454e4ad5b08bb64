"""The process that runs the program and answers calls of its functions.

It knows the program, and of the tests no more than the calls that they make: which function, with
which arguments. Whatever the program does to this process, all it can do is to answer.
"""

from __future__ import annotations

import ast
import random
import sys
import types
from typing import Any, NoReturn

from . import wire

# What programs use without importing it, because the prompts that they complete have it.
_PREAMBLE = """
from typing import *
import bisect, collections, copy, datetime, functools, heapq, itertools, math, operator
import random, re, statistics, string
from collections import Counter, OrderedDict, defaultdict, deque
"""
MODULES = (
    "bisect", "collections", "copy", "datetime", "functools", "heapq", "itertools", "math",
    "operator", "random", "re", "statistics", "string",
)  # fmt: skip
_names: dict[str, Any] = {}


def preload() -> None:
    """Once, in the server: so that no program waits for an import."""
    exec(_PREAMBLE, _names)
    import cmath  # noqa: F401
    import contextlib  # noqa: F401
    import dataclasses  # noqa: F401
    import decimal  # noqa: F401
    import enum  # noqa: F401
    import fractions  # noqa: F401
    import time  # noqa: F401


def serve(text: str, requests: int, replies: int) -> NoReturn:
    """Runs the program, then answers calls until the judge is gone."""
    module = types.ModuleType("program")
    module.__dict__.update(_names, __name__="program")
    sys.modules["program"] = module
    random.seed(0)
    kept: list[Any] = []

    def keep(value: Any) -> int:
        kept.append(value)
        return len(kept) - 1

    _reply(replies, lambda: _run(text, module.__dict__))
    while True:
        try:
            request = wire.receive(requests)
        except wire.Closed:
            sys.exit()
        _reply(replies, lambda: _answer(request, module.__dict__, kept), keep)  # noqa: B023


def _run(text: str, names: dict[str, Any]) -> None:
    tree = ast.parse(text)
    # Its own asserts are examples in an answer: the tests decide, not they.
    tree.body = [node for node in tree.body if not isinstance(node, ast.Assert)]
    exec(compile(tree, "<program>", "exec"), names)


def _answer(request: Any, names: dict[str, Any], kept: list[Any]) -> Any:
    root, *path = request["at"]
    if isinstance(root, str):
        if root not in names:
            raise NameError(f"the program does not define {root}")
        found = names[root]
    else:
        found = kept[root]
    for attribute in path:
        found = getattr(found, attribute)
    if request["do"] == "list":
        return list(found)
    return found(*wire.decode(request["args"], kept.__getitem__),
                 **wire.decode(request["kwargs"], kept.__getitem__))  # fmt: skip


def _reply(replies: int, work: Any, keep: Any = None) -> None:
    try:
        value = work()
        message = {"returned": wire.encode(value, keep)} if keep else {"returned": None}
        wire.send(replies, message)
    except wire.Closed:
        sys.exit()
    except BaseException as error:
        try:
            text = str(error)[:200]
        except BaseException:
            text = ""
        wire.send(replies, {"raised": [type(error).__name__[:80], text]})
