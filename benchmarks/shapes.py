"""The shapes that are measured, by name. An op takes those that make sense for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """`rows` tokens over a vocabulary of `vocab`; `hidden`: the size of of the head's input."""

    name: str
    rows: int
    vocab: int
    why: str = ""
    hidden: int | None = None

    def __str__(self) -> str:
        sizes = (self.rows, self.hidden, self.vocab)
        return f"[{', '.join(str(size) for size in sizes if size is not None)}]"


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

MEMORY = "memory/"  # shapes so named are there for their memory alone
MEMORY_ROWS = (512, 2048, 8192)
LINEAR_SHAPES = {  # [rows, hidden, vocab], by kind of device
    "cpu": (
        *(Shape(f"{MEMORY}{n}", n, 32064, "where memory alone counts", 256) for n in MEMORY_ROWS),
        Shape("openvla/512", 512, 32064, "a robot's batch", 2048),
        Shape("qwen2.5-0.5b/512", 512, 151936, "a small model: the head is most of it", 896),
        Shape("qwen2.5-3b/512", 512, 151936, "one completion: the shape of the targets", 2048),
        Shape("qwen2.5-3b/2k", 2048, 151936, "one long completion", 2048),
    ),
    "cuda": (
        Shape("qwen2.5-1.5b/4k", 4096, 151936, "", 1536),
        Shape("qwen2.5-3b/4k", 4096, 151936, "", 2048),
        Shape("liger/4k", 4096, 131072, "the shape that peers publish", 4096),
        Shape("qwen3-8b/8k", 8192, 151936, "a micro-batch: the shape of the targets", 4096),
        Shape("qwen3-8b/16k", 16384, 151936, "more than 2^31 logits", 4096),
    ),
}
LINEAR_QUICK = {"cpu": ("memory/512", "openvla/512"), "cuda": ("qwen2.5-3b/4k",)}


def named(name: str, shapes: Mapping[str, Sequence[Shape]] = SHAPES) -> Shape:
    """A shape of `shapes` by its name, or from its sizes: as many as those have."""
    known = {shape.name: shape for some in shapes.values() for shape in some}
    if name in known:
        return known[name]
    form = "ROWSxVOCAB" if all(s.hidden is None for s in known.values()) else "ROWSxHIDDENxVOCAB"
    sizes = [int(size) if size.isdigit() else 0 for size in name.split("x")]
    if not all(sizes) or len(sizes) != len(form.split("x")):
        raise ValueError(f"shapes: expected {form} or one of {', '.join(known)}, got {name!r}")
    return Shape(name, sizes[0], sizes[-1], hidden=sizes[1] if len(sizes) == 3 else None)
