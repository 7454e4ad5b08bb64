"""policy_loss beside the eager code of verl: PPO's dual clip with its metrics, and the gradient.

A shape is [B, T]. verl reads three metrics back with `.item()`, each a wait on a GPU; ours stay on
the device, and are seven. Everyone has the same bool mask. On a GPU ours is also captured in a
graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import REPLAY, TOTAL, Group, Provider
from benchmarks.ops._graphs import captured
from benchmarks.shapes import Shape
from benchmarks.targets import Target
from logpi import policy_loss
from logpi.objectives import DualClip
from logpi.ops.policy_loss import BACKENDS

_BOTH = (
    Shape("group/64k", 64, 1024, "64k tokens: the shape of the targets"),
    Shape("long/64k", 8, 8192, "64k tokens in few sequences"),
    Shape("micro/4k", 4, 1024, "a micro-batch: little but the calls"),
    Shape("batch/4M", 512, 8192, "a whole batch, beyond any cache"),
)
SHAPES = {"cpu": _BOTH, "cuda": _BOTH}
QUICK = {"cpu": ("group/64k",), "cuda": ("group/64k",)}
DTYPES = ("float32",)
LOW, HIGH, C = 0.2, 0.28, 3.0
OBJECTIVE = DualClip(LOW, HIGH, C)
Loss = Callable[..., Tensor]


class Case:
    """Responses of any length, padded to T, a few updates after their rollout."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> None:
        self.moved: dict[str, int] = {}  # calls and launches take the time: bytes say little of it
        random = torch.Generator().manual_seed(seed)
        rows, columns = shape.rows, shape.vocab

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=random)

        log_probs = -normal(rows, columns).abs()
        given = log_probs, log_probs + 0.1 * normal(rows, columns)
        given += (normal(rows, 1).expand(rows, columns).contiguous(),)  # as trainers have them
        lengths = torch.randint(columns // 2, columns + 1, (rows, 1), generator=random)
        mask = (torch.arange(columns) < lengths).to(device)
        # As ops take them: log_probs, old_log_probs, advantages, loss_mask.
        self.inputs = (*(t.to(device=device, dtype=dtype) for t in given), mask)
        self.leaf = self.inputs[0].requires_grad_()
        self.nbytes = sum(t.nbytes for t in self.inputs)
        self._truth: Tensor | None = None

    def error(self, provider: Provider, result: Any) -> float | None:
        """The largest error of the gradient, in units of the largest of them."""
        if not isinstance(result, tuple):
            return None
        if self._truth is None:
            wide = [t.detach().double() if t.is_floating_point() else t for t in self.inputs]
            leaf = wide[0].requires_grad_()
            loss = policy_loss(*wide, objective=OBJECTIVE, backend="torch").loss
            (self._truth,) = torch.autograd.grad(loss, leaf)
        scale = self._truth.abs().max()
        return ((result[0].double() - self._truth).abs().max() / scale).item()


def groups(case: Case) -> list[Group]:
    """What takes turns, for one shape."""
    compiled = torch.compile(lambda *given: verl(*given)[0], dynamic=False)
    providers = [
        *(_provider(case, f"logpi {row.name}", _ours(row.name), "ours", row) for row in BACKENDS),
        _provider(case, "verl, eager, three .item()", _with_items),
        _provider(case, "verl, eager, no metric read", lambda *given: verl(*given)[0]),
        _provider(case, "torch.compile of verl, no metric", compiled, compiles=True),
    ]
    group = Group("training", "", providers)
    out = [group, group.warm()]
    if case.leaf.is_cuda:
        rows = [row for row in BACKENDS if row.name != "cpu"]
        out.append(Group("replayed", "", [_replayed(case, row) for row in rows]))
    return out


def _ours(row: str) -> Loss:
    return lambda *given: policy_loss(*given, objective=OBJECTIVE, backend=row).loss


def _provider(
    case: Case, name: str, loss: Loss, role: str = "peer", row: Any = None, compiles: bool = False
) -> Provider:
    stages = {
        "forward": lambda _: loss(*case.inputs),
        "backward": lambda value: torch.autograd.grad(value, case.leaf),
    }
    refusal = None if row is None else _refusal(case, row)
    return Provider(name, stages, role, refusal=refusal, compiles=compiles)


def _refusal(case: Case, row: Any) -> str | None:
    if row.unavailable() is not None:
        return row.unavailable()
    on_gpu = case.leaf.is_cuda
    return "needs log_probs on a CPU" if on_gpu and row.name == "cpu" else None


def _replayed(case: Case, row: Any) -> Provider:
    """Forward and backward in one CUDA graph."""
    graph: list[Callable[[], None]] = []
    loss = _ours(row.name)

    def replay(_: None) -> None:
        if not graph:
            work = lambda: torch.autograd.grad(loss(*case.inputs), case.leaf)  # noqa: E731
            graph.append(captured(work, case.leaf.device))
        graph[0]()

    return Provider(f"logpi {row.name}", {REPLAY: replay}, "ours", refusal=_refusal(case, row))


# ---- what verl does, in our words ---------------------------------------------------------------


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / (mask.sum() + 1e-8)


def verl(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The plain loss, dual clip and token mean; and its three metrics, not yet read."""
    log_ratio = torch.clamp(log_probs - old_log_probs, min=-20.0, max=20.0)
    ratio = torch.exp(log_ratio)
    kl = _mean(-log_ratio, mask)
    free = -advantages * ratio
    bound = -advantages * torch.clamp(ratio, 1 - LOW, 1 + HIGH)
    clipped = torch.maximum(free, bound)
    fraction = _mean(torch.gt(bound, free).float(), mask)
    most = -advantages * C
    dual = torch.min(most, clipped)
    lower = _mean(torch.gt(clipped, most) * (advantages < 0).float(), mask)
    losses = torch.where(advantages < 0, dual, clipped)
    return _mean(losses, mask), (fraction, kl, lower)


def _with_items(*given: Tensor) -> Tensor:
    loss, told = verl(*given)
    for value in told:
        value.detach().item()
    return loss


_WHOLE = (TOTAL, "")
_EAGER = "verl, eager, three"
TARGETS = {
    "cpu": (
        *(
            Target("times verl", shape, _WHOLE, "ratio", 3.0, against=_EAGER, caches=caches)
            for shape in ("[64, 1024]", "[8, 8192]")
            for caches in ("warm", "cold")
        ),
        Target("times the best peer", "[512, 8192]", _WHOLE, "ratio", 1.0, against=""),
    ),
    "cuda": (
        Target("times verl", "[64, 1024]", _WHOLE, "ratio", 3.0, against=_EAGER),
        Target("µs in a graph", "[64, 1024]", (REPLAY, ""), "us", 10.0),
    ),
}
