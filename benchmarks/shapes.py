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


_CALL = Shape("call", 1, 32, "so small that only the call itself is timed")
SHAPES = {  # by kind of device
    "cpu": (
        _CALL,
        Shape("openvla/64", 64, 32064, "a few robot steps: fits a last-level cache"),
        Shape("openvla/512", 512, 32064, "a robot's batch"),
        Shape("qwen2.5/512", 512, 151936, "one short completion"),
        Shape("qwen2.5/2k", 2048, 151936, "one long completion: far beyond any cache"),
    ),
    "cuda": (  # smaller ones first: what a provider needs at a larger one is guessed from them
        _CALL,
        Shape("qwen2.5/64", 64, 151936, "a decode step: fewer rows than multiprocessors"),
        Shape("openvla/4k", 4096, 32064, "a robot's rollout"),
        Shape("llama3/4k", 4096, 128256),
        Shape("qwen2.5/8k", 8192, 151936, "a micro-batch: the shape of the targets"),
        Shape("llama3/16k", 16384, 128256),
        Shape("openvla/64k", 65536, 32064),
        Shape("qwen2.5/16k", 16384, 151936, "more than 2^31 elements"),
        Shape("qwen2.5/64k", 65536, 151936, "20 GB of logits: few peers have the memory"),
    ),
}
QUICK = {"cpu": ("call", "openvla/64"), "cuda": ("qwen2.5/64", "qwen2.5/8k")}


def named(name: str) -> Shape:
    """A shape by its name, or from `ROWSxVOCAB`."""
    known = {shape.name: shape for shapes in SHAPES.values() for shape in shapes}
    if name in known:
        return known[name]
    rows, _, vocab = name.partition("x")
    if not (rows.isdigit() and vocab.isdigit() and int(rows) and int(vocab)):
        raise ValueError(f"shapes: expected ROWSxVOCAB or one of {', '.join(known)}, got {name!r}")
    return Shape(name, int(rows), int(vocab))
