"""Seconds in the loss head, measured the same way whatever function computes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from trl.trainer import utils


@dataclass
class LossHeadTimer:
    """Wall-clock seconds between hidden states and per-token numbers, and back.

    Both directions hold the head's matrix products, which every implementation needs, and
    nothing of the layers below. Times are of a CPU: on a GPU they would be of the launches.
    """

    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    calls: int = 0

    def reset(self) -> None:
        self.forward_seconds = self.backward_seconds = 0.0
        self.calls = 0

    def apply(self, *args: Any) -> tuple[Tensor | None, ...]:
        """What `self.head.apply(*args)` returns, timed."""
        return _Timed.apply(self, *args)

    @contextmanager
    def installed(self) -> Iterator[LossHeadTimer]:
        """Times whichever function TRL's fused LM head calls on entry: enter it last."""
        self.head = utils._ChunkedLogProbFunction
        utils._ChunkedLogProbFunction = self
        try:
            yield self
        finally:
            utils._ChunkedLogProbFunction = self.head


class _Timed(torch.autograd.Function):
    """A graph of its own for the head, so that its whole backward lies between two clock reads."""

    @staticmethod
    def forward(
        ctx: Any,
        timer: LossHeadTimer,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *rest: Any,
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        wanted = ctx.needs_input_grad[1:4]
        inputs = [
            None if x is None else x.detach().requires_grad_(needed)
            for x, needed in zip((hidden, weight, bias), wanted, strict=True)
        ]
        start = perf_counter()
        with torch.set_grad_enabled(any(wanted)):
            outputs = timer.head.apply(*inputs, *rest)
        timer.forward_seconds += perf_counter() - start
        timer.calls += 1
        ctx.timer, ctx.inputs, ctx.outputs = timer, inputs, outputs
        results = tuple(None if x is None else x.detach() for x in outputs)
        ctx.mark_non_differentiable(
            *(
                result
                for x, result in zip(outputs, results, strict=True)
                if x is not None and not x.requires_grad
            )
        )
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        reached = [
            (x, grad) for x, grad in zip(ctx.outputs, grads, strict=True) if grad is not None
        ]
        wanted = [x for x in ctx.inputs if x is not None and x.requires_grad]
        start = perf_counter()
        found = iter(torch.autograd.grad([x for x, _ in reached], wanted, [g for _, g in reached]))
        ctx.timer.backward_seconds += perf_counter() - start
        ctx.outputs = None  # frees the graph with the logits
        return (
            None,
            *(next(found) if x is not None and x.requires_grad else None for x in ctx.inputs),
            *(None for _ in range(6)),
        )
