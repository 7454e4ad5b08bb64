"""The JSON in a model's answer: what of it is complete, of any text, in time linear in it."""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_CHARACTERS = 65_536  # of an answer; what comes after is not read

_OPENING = re.compile(r"[\[{]")
_TOKEN = re.compile(
    r"""\s*+(?:
      (?P<mark>[\[\]{},:])
    | "(?P<text>(?:[^"\\\n]|\\.)*+)"   # ends with its line: one quote costs no more
    | (?P<word>[^\s\[\]{},:"]++)
    | .                                # a quote without its other
    )""",
    re.VERBOSE,
)
_CONSTANTS = {
    "true": True,
    "false": False,
    "null": None,
    "NaN": math.nan,
    "Infinity": math.inf,
    "-Infinity": -math.inf,
}
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*+)(?P<fraction>(?:\.\d++)?(?:[eE][+-]?\d++)?)", re.ASCII)
_NONE = object()  # what a word is that JSON does not know
_MOST_DIGITS = 18  # of an int; one with more is a float, which no number of digits makes slow


def answer_of(text: str) -> str:
    """Where the answer is: behind the thoughts, in the last code fence that holds a bracket.

    A fence that is never closed goes on to the end, and so does a thought.
    """
    text = text.rpartition("</think>")[2].partition("<think>")[0]
    fenced = text.split("```")[1::2]
    return next((part for part in reversed(fenced) if _OPENING.search(part)), text)


def complete_values(text: str) -> list[Any]:
    """The complete arrays and objects of a text, without those inside of others.

    Of JSON these are its value; of JSON that is cut off, or broken at one place, what was closed
    before and what opens after. Text between is skipped. As in `json.loads` the last of equal
    keys counts. A comma may trail.

    Returns:
        Lists and dicts as of `json.loads`, in order; nested as deep as the text is: walk them with
        a stack of your own.
    """
    found: list[Any] = []
    open_: list[Any] = []  # lists and dicts, each inside the one before
    keys: list[str | None] = []  # of each, the key that waits for its value
    after = ""  # what came last: "" an opening, one of , : or v a value, k a key
    at = 0

    def give_up() -> None:
        for outer in open_:
            inner = outer.values() if isinstance(outer, dict) else outer
            done = [one for one in inner if isinstance(one, (dict, list))]
            found.extend(done)
        open_.clear()
        keys.clear()

    while True:
        if not open_:
            opening = _OPENING.search(text, at)
            if opening is None:
                return found
            at = opening.start()
        token = _TOKEN.match(text, at)
        if token is None:
            give_up()
            return found
        at = token.end()
        mark = token["mark"]
        in_object = bool(open_) and isinstance(open_[-1], dict)
        wants_value = not open_ or (after == ":" if in_object else after in ("", ","))

        if mark in ("[", "{"):
            if not wants_value:
                give_up()
            open_.append([] if mark == "[" else {})
            keys.append(None)
            after = ""
        elif mark in ("]", "}"):
            if in_object == (mark == "}") and after in ("", ",", "v"):
                done = open_.pop()
                keys.pop()
                after = "v"
                if not open_:
                    found.append(done)
                else:
                    _add(open_[-1], keys[-1], done)
            else:
                give_up()
        elif mark == "," and after == "v":
            after = ","
        elif mark == ":" and after == "k":
            after = ":"
        elif in_object and after in ("", ",") and token["text"] is not None:
            keys[-1], after = _string(token["text"]), "k"
        elif wants_value and mark is None and (value := _scalar(token)) is not _NONE:
            _add(open_[-1], keys[-1], value)
            after = "v"
        else:
            give_up()


def _add(outer: Any, key: str | None, value: Any) -> None:
    if isinstance(outer, dict):
        outer[key] = value
    else:
        outer.append(value)


def _scalar(token: re.Match[str]) -> Any:
    """A string, number or constant."""
    if token["text"] is not None:
        return _string(token["text"])
    word = token["word"] or ""
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    number = _NUMBER.fullmatch(word)
    if number is None:
        return _NONE
    return float(word) if number["fraction"] or len(word) > _MOST_DIGITS else int(word)


def _string(inside: str) -> str:
    if "\\" not in inside:
        return inside
    try:
        return str(json.loads(f'"{inside}"', strict=False))
    except ValueError:  # an escape that JSON does not know: as it stands
        return inside
