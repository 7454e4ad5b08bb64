"""The covariance rules beside the eager code that selects the same tokens.

`clip_cov_mask` with the tokens that a ratio clip has taken excluded, `kl_cov_mask`, `covariances`.
The eager code gets the mask as numbers, as its trainer holds it; ours as bool.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Group, Provider
from benchmarks.ops import _covariance_peers as peers
from benchmarks.shapes import Shape
from benchmarks.targets import Target
from logpi import clip_cov_mask, covariances, kl_cov_mask
from logpi.ops.covariance_clip import BACKENDS

__all__ = ["QUICK", "SHAPES", "TARGETS", "Case", "groups"]

FRACTIONS = {"clip": 2e-4, "kl": 2e-3}
_SHAPES = (  # [sequences, tokens of the longest]
    Shape("micro-batch/8k", 8, 1024, "a micro-batch"),
    Shape("batch/64k", 32, 2048, "the shape of the targets"),
    Shape("batch/1m", 128, 8192, "an update's global batch"),
)
SHAPES = {"cpu": _SHAPES, "cuda": _SHAPES}
QUICK = {"cpu": ("batch/64k",), "cuda": ("batch/64k",)}


class Case:
    """`log_probs`, `advantages`, `mask`, `clipped`: all `[B, T]`; padded on the right."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        self.moved: dict[str, int] = {}  # bound by calls and arithmetic
        size = (shape.rows, shape.vocab)
        self.wanted = dtype == torch.float32  # what a token has is float32
        # most tokens are nearly certain, some are not; one advantage a sequence, of groups of 8
        self.log_probs = (-8 * torch.rand(size, generator=random).pow(6)).to(device)
        rewards = (torch.rand(shape.rows // 8, 8, generator=random) < 0.5).float()
        spread = rewards.std(-1, keepdim=True) + 1e-6
        per_sequence = ((rewards - rewards.mean(-1, keepdim=True)) / spread).view(-1, 1)
        self.advantages = per_sequence.expand(size).contiguous().to(device)
        longest = shape.vocab
        lengths = torch.randint(longest // 2, longest + 1, (shape.rows, 1), generator=random)
        self.mask = (torch.arange(longest) < lengths).to(device)
        self.clipped = (torch.rand(size, generator=random).to(device) < 0.02) & self.mask
        self.numbers = self.mask.long()
        self.nbytes = self.log_probs.nbytes + self.advantages.nbytes + self.mask.nbytes
        self.token_ids = self.log_probs  # by which run.py knows the device

    def error(self, provider: Provider, result: Any) -> float | None:
        """Of c, its largest error; of a mask, how many tokens too many or too few it has, and of
        KL-Cov how many others than the definition."""
        name = next(iter(provider.stages))
        args = (self.log_probs, self.advantages, self.mask)
        if name == "covariances":
            truth = covariances(args[0].double(), args[1], args[2], backend="torch")
            return float((result - truth).abs().max())
        if name == "kl_cov_mask":
            return float((result != kl_cov_mask(*args, backend="torch")).sum())
        wanted = clip_cov_mask(*args, exclude=self.clipped, backend="torch").sum()
        return float((result.sum() - wanted).abs())


def groups(case: Case) -> list[Group]:
    """What takes turns, for one shape; nothing for another dtype than float32."""
    if not case.wanted:
        return []
    tensors = (case.log_probs, case.advantages)

    def provider(op: str, name: str, role: str, function: Callable[[], Tensor]) -> Provider:
        return Provider(name, {op: lambda _: function()}, role)

    def ours(op: Callable[..., Tensor], **options: Any) -> list[Provider]:
        return [
            provider(
                op.__name__, f"logpi {row.name}", "ours",
                lambda row=row: op(*tensors, case.mask, backend=row.name, **options),
            )
            for row in BACKENDS
        ]  # fmt: skip

    def eager_covariances() -> Tensor:
        means = [peers.masked_mean(x, case.numbers) for x in tensors]
        return ((tensors[1] - means[1]) * (tensors[0] - means[0])).where(case.mask, 0.0)

    clip, kl = FRACTIONS["clip"], FRACTIONS["kl"]
    theirs = {
        "clip_cov_mask": lambda: peers.clip_cov(*tensors, case.numbers, case.clipped, clip),
        "kl_cov_mask": lambda: peers.kl_cov(*tensors, case.numbers, kl),
        "covariances": eager_covariances,
    }
    mine = {
        "clip_cov_mask": ours(clip_cov_mask, exclude=case.clipped, fraction=clip),
        "kl_cov_mask": ours(kl_cov_mask, fraction=kl),
        "covariances": ours(covariances),
    }
    out = [
        Group(op, "", [*mine[op], provider(op, "verl, eager", "peer", function)])
        for op, function in theirs.items()
    ]
    return [one for group in out for one in (group, group.warm())]


_64K = "[32, 2048]"
TARGETS = {
    "cpu": [
        Target("times verl", _64K, (op, ""), "ratio", 10.0, "float32", "verl", caches=caches)
        for op in ("clip_cov_mask", "kl_cov_mask")
        for caches in ("warm", "cold")
    ],
    "cuda": [
        Target("µs", _64K, (op, ""), "us", 25.0, "float32")
        for op in ("clip_cov_mask", "kl_cov_mask")
    ],
}
