"""Hidden states, a head and upstream gradients, with float64 truths that cost little to make."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from benchmarks.harness import Provider
from benchmarks.ops._logits import CHECKED_ROWS
from benchmarks.shapes import Shape

BOTH, ONE, LOSS = "log p, H", "log p", "loss"
MASKED, UNWEIGHTED, SLICED = "half masked", "half without gradient", "256 columns"
DISTINCT = 64  # rows of the hidden states, repeated: the sums of all rows are those of a few
_BLOCK = 4096  # columns drawn, or multiplied in float64, at a time


class Asked(NamedTuple):
    """What a provider was given, and so what it must return."""

    token_ids: Tensor  # [N]
    grad_log_probs: Tensor  # [N]
    grad_entropy: Tensor | None  # [N]
    mask: Tensor | None = None  # [N]; the gradients are 0 where it is False
    columns: slice = slice(None)


class HiddenCase:
    """One shape and dtype: `hidden [N, D]`, `weight [V, D]`, and what is asked about them.

    A few candidates a row stand far above the rest, as after a language model.
    """

    moved: ClassVar[dict[str, int]] = {}  # bound by its products

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        rows, size, vocab = shape.rows, shape.hidden, shape.vocab
        assert size is not None
        some = torch.randn(min(vocab, _BLOCK), size, generator=random) * (4 / math.sqrt(size))
        some = some.to(device)
        self.shape = shape
        self.weight = torch.empty(vocab, size, dtype=dtype, device=device)
        for number, begin in enumerate(range(0, vocab, _BLOCK)):
            block = self.weight[begin : begin + _BLOCK]  # drawing every row would take a minute
            block.copy_(some[: len(block)].roll(number, dims=1))
        self.token_ids = torch.randint(vocab, (rows,), generator=random).to(device)
        few = torch.randn(min(rows, DISTINCT), size, generator=random).to(device)
        few += 1.5 * self.weight[self.token_ids[: len(few)]]
        self.hidden = few.to(dtype).repeat(-(-rows // len(few)), 1)[:rows]
        self.half = (torch.randperm(rows, generator=random) < rows // 2).to(device)
        self.window = slice(vocab - min(vocab, 256), vocab)  # where a robot's actions lie
        self._g = torch.randn(rows, generator=random).to(device)
        self._h = torch.randn(rows, generator=random).to(device)
        self.checked = torch.linspace(0, rows - 1, min(rows, CHECKED_ROWS)).long().to(device)
        ids = torch.randint(vocab, (CHECKED_ROWS // 2,), generator=random).to(device)
        ids[:2] += self.window.start - ids[:2]
        self.checked_ids = torch.cat([ids, self.token_ids[: CHECKED_ROWS // 2]])
        self.nbytes = self.hidden.nbytes + self.weight.nbytes
        self._truths: dict[str, tuple[Tensor, ...]] = {}

    @cached_property
    def buffer(self) -> Tensor:
        """`[N, V]`, warm: what a bare product is written into."""
        return self.hidden.new_zeros(len(self.hidden), len(self.weight))

    @cached_property
    def asked(self) -> dict[str, Asked]:
        ids, g, h, half = self.token_ids, self._g, self._h, self.half
        inside = self.window.start + ids % (self.window.stop - self.window.start)
        same = g[:1].expand_as(g).contiguous()  # a loss has one advantage a sequence
        return {
            BOTH: Asked(ids, g, h),
            ONE: Asked(ids, g, None),
            LOSS: Asked(ids, same, None),
            MASKED: Asked(ids, g * half, h * half, half),
            UNWEIGHTED: Asked(ids, g * half, h * half),
            SLICED: Asked(inside, g, h, None, self.window),
        }

    @cached_property
    def log_probs(self) -> Tensor:
        """`[N]` float32, of everybody's tokens."""
        few = torch.arange(len(self.hidden), device=self.hidden.device) % DISTINCT
        return torch.log_softmax(self._few_logits, -1)[few, self.token_ids].float()

    def error(self, provider: Provider, result: Any) -> float | None:
        """Largest error of the checked rows: of the outputs, or of both gradients."""
        if provider.asks is None:
            return None
        log_probs, entropy, grad_hidden, grad_weight = self._true_values(provider.asks)
        at = self.checked
        if "backward" not in provider.stages:
            pairs = [(result[0].view(-1)[at], log_probs)]
            if result[1] is not None:
                pairs.append((result[1].view(-1)[at], entropy))
        else:
            pairs = [(result[0][at], grad_hidden), (result[1][self.checked_ids], grad_weight)]
        return max((found.double() - truth).abs().max().item() for found, truth in pairs)

    @cached_property
    def _few_logits(self) -> Tensor:
        """`[DISTINCT, V]` float64."""
        few = self.hidden[:DISTINCT].double()
        return torch.cat([few @ part.double().t() for part in self.weight.split(_BLOCK)], -1)

    def _true_values(self, asks: str) -> tuple[Tensor, ...]:
        """log p and H `[checked]`; gradients `[checked, D]` and `[checked_ids, D]`."""
        if asks not in self._truths:
            self._truths[asks] = self._compute(self.asked[asks])
        return self._truths[asks]

    def _compute(self, asked: Asked) -> tuple[Tensor, ...]:
        first, last, _ = asked.columns.indices(len(self.weight))
        log_p = torch.log_softmax(self._few_logits[:, first:last], -1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        few = torch.arange(len(self.hidden), device=log_p.device) % DISTINCT  # whose sums a row has
        g = asked.grad_log_probs.double()
        h = torch.zeros_like(g) if asked.grad_entropy is None else asked.grad_entropy.double()

        def grad_logits(rows: Tensor, columns: Tensor) -> Tensor:
            """`[rows, columns]`; columns outside the support get none."""
            inside = (columns >= first) & (columns < last)
            at = (columns - first).clamp(0, last - first - 1)
            log_ps = log_p[few[rows][:, None], at]
            slope = g[rows, None] + h[rows, None] * (log_ps + entropy[few[rows], None])
            hit = asked.token_ids[rows, None] == columns
            return (hit * g[rows, None] - log_ps.exp() * slope) * inside

        at, everyone = self.checked, torch.arange(len(g), device=g.device)
        grad_hidden = g.new_zeros(len(at), self.hidden.shape[1])
        for begin in range(first, last, _BLOCK):
            part = torch.arange(begin, min(begin + _BLOCK, last), device=g.device)
            grad_hidden += grad_logits(at, part) @ self.weight[begin : begin + len(part)].double()
        grad_weight = grad_logits(everyone, self.checked_ids).t() @ self.hidden.double()
        log_probs = log_p[few[at], asked.token_ids[at] - first]
        alive = 1.0 if asked.mask is None else asked.mask[at]
        return log_probs * alive, entropy[few[at]] * alive, grad_hidden, grad_weight
