"""gae beside the loops that trainers run: one torch call after the other for each token.

Rewards lie on the last token of an answer, masks are prefixes of random length with a tenth of the
tokens in between left out, as after calls of tools. Whitened, as the trainers have it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.devices import device_of
from benchmarks.harness import Group, Provider, fastest
from benchmarks.shapes import Shape
from benchmarks.targets import Target
from logpi.advantages import gae
from logpi.ops.gae import BACKENDS

__all__ = ["QUICK", "SHAPES", "TARGETS", "Case", "groups"]

GAMMA, LAM = 0.999, 0.95
SHAPES = {  # rows are sequences, columns tokens
    kind: (
        Shape("batch/64x512", 64, 512, "a batch of short answers"),
        Shape("batch/64x8k", 64, 8192, "a batch of long answers: the shape of the target"),
        Shape("batch/512x4k", 512, 4096, "a large batch"),
    )
    for kind in ("cpu", "cuda")
}
QUICK = dict.fromkeys(SHAPES, ("batch/64x512",))


class Case:
    """One shape: `rewards`, `values` and `loss_mask` `[B, T]`, float32."""

    moved: ClassVar = {"read": 1, "copy": 2, "forward": 17 / 9}  # 9 bytes a token in, 8 out

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        size = shape.rows, shape.vocab
        self.dtype = dtype
        lengths = torch.randint(size[1] // 4, size[1] + 1, (size[0], 1), generator=random)
        mask = torch.arange(size[1]) < lengths
        rewards = torch.zeros(size).scatter_(
            1, lengths - 1, torch.randn(size[0], 1, generator=random)
        )
        self.rewards = rewards.to(device)
        self.values = torch.randn(size, generator=random).to(device)
        mask &= (torch.rand(size, generator=random) > 0.1) | (rewards != 0)
        self.loss_mask = mask.to(device)
        self.token_ids = self.loss_mask  # what the harness asks for the device
        self.nbytes = self.rewards.nbytes + self.values.nbytes + self.loss_mask.nbytes
        self._truth: Tensor | None = None

    def plain_read(self) -> Provider:
        x = torch.cat([self.rewards.flatten(), self.values.flatten(), self.rewards.flatten()[::4]])
        candidates = {"sum": x.sum, "max": x.max}
        read = candidates[fastest(candidates, device_of(x))]
        return Provider("plain read", {"read": lambda _: read()}, "reference")

    def error(self, provider: Provider, result: Any) -> float | None:
        if provider.role == "reference":
            return None
        if self._truth is None:
            wide = self.rewards.double(), self.values.double(), self.loss_mask
            self._truth = gae(*wide, gamma=GAMMA, lam=LAM).advantages
        apart = (result[0].double() - self._truth).where(self.loss_mask, 0.0)
        return apart.abs().max().item()


def groups(case: Case) -> list[Group]:
    """What takes turns, for one shape; float32 alone."""
    if case.dtype != torch.float32:
        return []
    rewards, values, mask = case.rewards, case.values, case.loss_mask
    floats = mask.float()  # as a trainer holds it

    def ours(row: str) -> Provider:
        stage = {"forward": lambda _: gae(rewards, values, mask, gamma=GAMMA, lam=LAM, backend=row)}
        return Provider(f"logpi {row}", stage, "ours")

    loop = {"forward": lambda _: verl_loop(rewards, values, floats)}
    peer = Provider("verl compute_gae_advantage_return", loop)
    return [Group("forward", "", [case.plain_read(), *(ours(row.name) for row in BACKENDS), peer])]


def verl_loop(rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What verl/trainer/ppo/core_algos.py computes, step by step as it does, in our words."""
    with torch.no_grad():
        value_behind: Tensor | float = 0.0
        behind: Tensor | float = 0.0
        found = []
        for t in range(rewards.shape[1] - 1, -1, -1):
            here = mask[:, t]
            residual = rewards[:, t] + GAMMA * value_behind - values[:, t]
            advantage = residual + GAMMA * LAM * behind
            value_behind = values[:, t] * here + (1 - here) * value_behind
            behind = advantage * here + (1 - here) * behind
            found.append(behind)
        advantages = torch.stack(found[::-1], dim=1)
        returns = advantages + values
        count = mask.sum()
        if count.item() <= 1:  # which it asks of the device, and refuses
            raise ValueError("at least two tokens")
        centered = advantages - (advantages * mask).sum() / (count + 1e-8)
        variance = (centered.square() * mask).sum() / (count + 1e-8) * count / (count - 1)
        return centered * torch.rsqrt(variance + 1e-8), returns


_HERE = ("forward", "")
TARGETS = {
    "cpu": (Target("times verl", "[64, 8192]", _HERE, "ratio", 100.0, against="verl"),),
    "cuda": (
        Target("times verl", "[64, 8192]", _HERE, "ratio", 100.0, against="verl"),
        Target("µs a call", "[64, 8192]", _HERE, "us", 10.0),
    ),
}
