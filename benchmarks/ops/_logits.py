"""Logits, ids and upstream gradients as a trainer meets them; the float64 truth for some rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.devices import device_of, reads
from benchmarks.harness import MOVED, Provider, fastest
from benchmarks.shapes import Shape

CHECKED_ROWS = 16


class LogitsCase:
    """One shape and dtype: `logits [N, V]`, `token_ids [N]`, random upstream gradients `[N]`.

    `scratch` is as large as the logits and warm: what copies and warm gradients are written into.
    """

    moved = MOVED

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        rows, vocab = shape.rows, shape.vocab
        some = torch.randn(min(rows, 64), vocab, generator=random) * 4
        tail = torch.rand(some.shape, generator=random) < 3 / vocab
        some += tail * 14  # a few candidates a row far above the rest, as after a language model
        some = some.to(device)
        self.logits = torch.empty(rows, vocab, dtype=dtype, device=device)
        for begin in range(0, rows, len(some)):  # repeated: drawing every row would take a minute
            block = self.logits[begin : begin + len(some)]
            block.copy_(some[: len(block)].roll(begin, dims=1))
        self.token_ids = torch.randint(vocab, (rows,), generator=random).to(device)
        self.grad_log_probs = torch.randn(rows, generator=random).to(device)
        self.grad_entropy = torch.randn(rows, generator=random).to(device)
        self.scratch = self.logits.clone()
        self.nbytes = self.logits.nbytes
        self.checked = torch.linspace(0, rows - 1, min(rows, CHECKED_ROWS)).long().to(device)
        self._truth: tuple[Tensor, ...] | None = None
        self._read = ""
        self._batches: list[Tensor] = []

    def batches(self, count: int) -> list[Tensor]:
        """Copies of the logits, the same ones for whoever asks."""
        while len(self._batches) < count:
            self._batches.append(self.logits.clone())
        return self._batches[:count]

    def plain_read(self) -> Provider:
        """The fastest read of the logits' bytes that torch has here; the name says which."""
        candidates = reads(self.logits)
        self._read = self._read or fastest(candidates, device_of(self.logits))
        read = candidates[self._read]
        return Provider(f"plain read ({self._read})", {"read": lambda _: read()}, "reference")

    def plain_copy(self, fresh: bool = False) -> Provider:
        """A copy of the logits' bytes into a warm buffer, or into a fresh one."""
        if fresh:
            return Provider("copy, fresh", {"copy": lambda _: self.logits.clone()}, "reference")
        stage = {"copy": lambda _: self.scratch.copy_(self.logits)}
        return Provider("copy, warm buffer", stage, "reference")

    def error(self, provider: Provider, result: Any) -> float | None:
        """Largest error of the checked rows: of the outputs, or of the gradient."""
        if provider.role == "reference" or provider.calls > 1:
            return None
        log_probs, entropy, both, log_p_only = self._true_values()
        if isinstance(result, Tensor):
            truth = both if "H" in provider.computes else log_p_only
            return _distance(result[self.checked], truth)
        found = [(result[0], log_probs)]
        if result[1] is not None:
            found.append((result[1], entropy))
        return max(_distance(value.view(-1)[self.checked], truth) for value, truth in found)

    def _true_values(self) -> tuple[Tensor, ...]:
        if self._truth is None:
            at = self.checked
            x = self.logits[at].double().requires_grad_()
            log_p = torch.log_softmax(x, -1)
            log_probs = log_p.gather(-1, self.token_ids[at, None]).squeeze(-1)
            entropy = -(log_p.exp() * log_p).sum(-1)
            grads = self.grad_log_probs[at].double(), self.grad_entropy[at].double()
            both = torch.autograd.grad((log_probs, entropy), x, grads, retain_graph=True)[0]
            alone = torch.autograd.grad(log_probs, x, grads[0])[0]
            self._truth = (log_probs.detach(), entropy.detach(), both, alone)
        return self._truth


def _distance(found: Tensor, truth: Tensor) -> float:
    return (found.double() - truth).abs().max().item()
