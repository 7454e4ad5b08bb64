"""What a hypothesis says, and how one is read from a text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

MAX_TEXT = 65_536  # characters looked at, from the end: the hypotheses come last
MAX_NAME = 200  # characters of an entity
MAX_CONDITIONS = 2  # of a group

# What "+" says of each relation, and the tests that can judge it.
RELATIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "differs_by": ("entity_a is higher where entity_b holds", ("t", "rank_sum", "permutation")),
    "correlates_with": ("both rise together", ("pearson", "spearman", "permutation")),
    "occurs_with": ("entity_a is more frequent where entity_b holds", ("fisher",)),
    "predicts_hazard_of": ("the more entity_a, the earlier entity_b", ("cox", "log_rank")),
}
_KEYS = ("entity_a", "relation", "entity_b", "direction", "test", "group")


@dataclass(frozen=True)
class Hypothesis:
    """(entity, relation, entity, direction, test, group): one claim, and how it is to be judged.

    Args:
        entity_a, entity_b: a column's name, or `column=level` for the rows of that level. For
            `predicts_hazard_of` the second one is the name of a survival outcome.
        relation: a key of RELATIONS.
        direction: "+" or "-".
        test: one of the relation's.
        group: conditions `column=level` that all hold: the rows the claim is about; () for all.
    """

    entity_a: str
    relation: str
    entity_b: str
    direction: str
    test: str
    group: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in _KEYS[:5]:
            value = getattr(self, name)
            if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME:
                raise ValueError(f"{name}: expected a text of 1 to {MAX_NAME} characters")
        if self.relation not in RELATIONS:
            raise ValueError(f"relation: expected one of {', '.join(RELATIONS)}")
        tests = RELATIONS[self.relation][1]
        if self.test not in tests:
            raise ValueError(f"test: expected one of {', '.join(tests)} for {self.relation}")
        if self.direction not in ("+", "-"):
            raise ValueError("direction: expected '+' or '-'")
        if not isinstance(self.group, tuple) or len(self.group) > MAX_CONDITIONS:
            raise ValueError(f"group: expected up to {MAX_CONDITIONS} conditions")
        for condition in self.group:
            if not isinstance(condition, str) or not 0 < len(condition) <= MAX_NAME:
                raise ValueError("group: expected conditions column=level")
            if "=" not in condition:
                raise ValueError("group: expected conditions column=level")
        if self.columns[0] == self.columns[1]:
            raise ValueError("entity_b: expected another column than entity_a's")
        if {c.partition("=")[0] for c in self.group} & set(self.columns):
            raise ValueError("group: expected columns other than the entities'")
        object.__setattr__(self, "group", tuple(sorted(set(self.group))))

    @property
    def columns(self) -> tuple[str, str]:
        """The two columns it is about."""
        return self.entity_a.partition("=")[0], self.entity_b.partition("=")[0]

    @property
    def sign(self) -> int:
        return 1 if self.direction == "+" else -1

    @property
    def pair(self) -> frozenset[str]:
        """What is found at most once: a pair of columns, whatever the level, test or group."""
        return frozenset(self.columns)

    def as_json(self) -> dict[str, Any]:
        return {**{key: getattr(self, key) for key in _KEYS[:5]}, "group": list(self.group)}


class Reading(NamedTuple):
    """What a text proposes.

    Attributes:
        hypotheses: well-formed ones, in order, repetitions included.
        malformed: why, of each of the others.
    """

    hypotheses: list[Hypothesis]
    malformed: list[str]


def read(text: str) -> Reading:
    """The hypotheses of the text's last fenced block, or else of its first JSON value.

    A list of objects, one object, or {"hypotheses": [..]}. A text without JSON proposes something
    malformed; `[]` proposes nothing. Raises on no text; linear in it.
    """
    found = _json(text[-MAX_TEXT:])
    if isinstance(found, dict):
        found = found["hypotheses"] if set(found) == {"hypotheses"} else [found]
    if not isinstance(found, list):
        return Reading([], ["expected JSON: a list of hypotheses"])
    reading = Reading([], [])
    for one in found:
        try:
            reading.hypotheses.append(_hypothesis(one))
        except ValueError as error:
            reading.malformed.append(str(error))
    return reading


def _hypothesis(one: Any) -> Hypothesis:
    if not isinstance(one, dict):
        raise ValueError(f"expected an object, got {type(one).__name__}")
    if unknown := set(one) - set(_KEYS):
        raise ValueError(f"expected the keys {', '.join(_KEYS)}, got {min(unknown)[:MAX_NAME]!r}")
    if missing := set(_KEYS[:5]) - set(one):
        raise ValueError(f"expected the keys {', '.join(_KEYS)}, without {min(missing)!r}")
    group = one.get("group") or []
    if not isinstance(group, list):
        raise ValueError("group: expected a list of conditions column=level")
    return Hypothesis(**{key: one[key] for key in _KEYS[:5]}, group=tuple(group))


_FENCE = re.compile(r"```[a-z]{0,10}\n")
_OPENING = re.compile(r'\[\s{0,20}(?:\{|\])|\{\s{0,20}"')
_TRIES = 8


def _json(text: str) -> Any:
    starts = [fence.end() for fence in _FENCE.finditer(text)]
    if starts:
        return _decoded(text[starts[-1] :])
    for tries, opening in enumerate(_OPENING.finditer(text)):
        if tries == _TRIES:
            break
        if (found := _decoded(text[opening.start() :])) is not None:
            return found
    return None


def _decoded(text: str) -> Any:
    try:
        return json.JSONDecoder().raw_decode(text.lstrip())[0]
    except (ValueError, RecursionError):  # a number of 5000 digits is a ValueError, too
        return None
