"""sample_tokens beside what decoders run: a softmax, a sort, a cumulative sum and a multinomial.

Each pass is a truncation: `plain`, `top_k` 50, `top_p` 0.95, `both`. Peers return a token; ours its
log-prob and the entropy too.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.harness import Group, Provider
from benchmarks.ops._logits import LogitsCase
from benchmarks.shapes import Shape
from benchmarks.targets import Target
from logpi import sample_tokens
from logpi.ops.token_sampling import BACKENDS

__all__ = ["QUICK", "SHAPES", "TARGETS", "Case", "groups"]

TEMPERATURE = 0.8
PASSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "top_k": {"top_k": 50},
    "top_p": {"top_p": 0.95},
    "both": {"top_k": 50, "top_p": 0.95},
}
SHAPES = {
    kind: (
        Shape("qwen2.5/64", 64, 151936, "a decode step"),
        Shape("qwen2.5/448", 448, 151936, "a wide decode step: the shape of the targets"),
    )
    for kind in ("cpu", "cuda")
}
QUICK = dict.fromkeys(SHAPES, ("qwen2.5/64",))


class Case(LogitsCase):
    """One shape and dtype; every pass reads the logits once at the least."""

    moved: ClassVar = {"read": 1, "copy": 2, **dict.fromkeys(PASSES, 1)}

    def error(self, provider: Provider, result: Any) -> float | None:
        """Of our log-probs, against what the definition gives the same tokens."""
        if provider.role != "ours":
            return None
        rows = self.checked
        options = PASSES[next(iter(provider.stages))]
        truth = sample_tokens(
            self.logits[rows].double(), temperature=TEMPERATURE, seed=0, step=0, row_ids=rows,
            backend="torch", **options,
        )  # fmt: skip
        same = truth.token_ids == result.token_ids[rows]
        apart = (result.log_probs[rows].double() - truth.log_probs).where(same, 0.0)
        return apart.abs().max().item()


def groups(case: Case) -> list[Group]:
    """A group a truncation, whose providers take turns."""
    logits = case.logits

    def ours(row: str, name: str) -> Provider:
        options = {"temperature": TEMPERATURE, "seed": 0, "step": 0, "return_entropy": True}
        options |= PASSES[name] | {"backend": row}
        return Provider(f"logpi {row}", {name: lambda _: sample_tokens(logits, **options)}, "ours")

    rows = [row.name for row in BACKENDS if row.name != "torch"]
    out = []
    for name, options in PASSES.items():
        peers = [
            Provider("transformers' warpers", {name: lambda _, o=options: warped(logits, **o)}),
            Provider("vLLM, native", {name: lambda _, o=options: sorted_once(logits, **o)}),
        ]
        out.append(Group(name, "", [case.plain_read(), *(ours(row, name) for row in rows), *peers]))
    return out


def warped(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """What transformers' logits warpers and its sampling loop compute, in our words."""
    x = logits.float() / TEMPERATURE
    if top_k is not None:
        x = x.masked_fill(x < x.topk(top_k).values[:, -1:], -torch.inf)
    if top_p is not None:
        rising, order = x.sort()
        drop = rising.softmax(-1).cumsum(-1) <= 1 - top_p
        drop[:, -1] = False
        x = x.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), -torch.inf)
    return x.softmax(-1).multinomial(1)[:, 0]


def sorted_once(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """What vLLM's native path computes: top-k alone by topk, else one sort, then exponential noise
    over the probabilities (one number an entry) instead of a multinomial."""
    x = logits.float() / TEMPERATURE
    if top_p is None and top_k is not None:
        x.masked_fill_(x < x.topk(top_k).values[:, -1:], -torch.inf)
    elif top_p is not None:
        rising, order = x.sort()
        if top_k is not None:
            rising.masked_fill_(rising < rising[:, -top_k].unsqueeze(1), -torch.inf)
        drop = rising.softmax(-1).cumsum(-1) <= 1 - top_p
        drop[:, -1] = False
        rising.masked_fill_(drop, -torch.inf)
        x = rising.scatter(1, order, rising)
    p = x.softmax(-1)
    return p.div_(torch.empty_like(p).exponential_()).argmax(-1)


_WIDE = "[448, 151936]"
TARGETS = {
    kind: (
        Target("times the strongest eager path", _WIDE, ("plain", ""), "ratio", 10.0),
        Target("times the strongest eager path", _WIDE, ("top_k", ""), "ratio", 10.0),
        Target("times the strongest eager path", _WIDE, ("top_p", ""), "ratio", 10.0),
        Target("times the strongest eager path", _WIDE, ("both", ""), "ratio", 10.0),
    )
    for kind in ("cpu", "cuda")
}
