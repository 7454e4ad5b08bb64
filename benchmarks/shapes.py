"""The shapes that are measured, by name. An op takes those that make sense for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """`rows` tokens over a vocabulary of `vocab`."""

    name: str
    rows: int
    vocab: int
    why: str = ""

    def __str__(self) -> str:
        return f"[{self.rows}, {self.vocab}]"


SHAPES = (
    Shape("call", 1, 32, "so small that only the call itself is timed"),
    Shape("openvla/64", 64, 32064, "a few robot steps: fits a last-level cache"),
    Shape("openvla/512", 512, 32064, "a robot's batch"),
    Shape("qwen2.5/512", 512, 151936, "one short completion"),
    Shape("qwen2.5/2k", 2048, 151936, "one long completion: far beyond any cache"),
)
QUICK = ("call", "openvla/64")


def named(name: str) -> Shape:
    """A shape by its name, or from `ROWSxVOCAB`."""
    for shape in SHAPES:
        if shape.name == name:
            return shape
    rows, _, vocab = name.partition("x")
    if not (rows.isdigit() and vocab.isdigit() and int(rows) and int(vocab)):
        known = ", ".join(shape.name for shape in SHAPES)
        raise ValueError(f"shapes: expected ROWSxVOCAB or one of {known}, got {name!r}")
    return Shape(name, int(rows), int(vocab))
