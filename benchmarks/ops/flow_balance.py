"""flow_balance_loss beside the eager code of FlowRL: loss, nine metrics and both gradients.

A shape is [B, T]. FlowRL reads each metric back with `.item()`, nine waits on a GPU; ours are
read in one copy. Everyone has the same bool mask. On a GPU ours is also captured in a graph, its
metrics unread.
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
from logpi import flow_balance_loss
from logpi.ops.flow_balance.op import BACKENDS, check_call

_BOTH = (
    Shape("group/64k", 64, 1024, "64k tokens: the shape of the targets"),
    Shape("long/64k", 8, 8192, "64k tokens in few sequences"),
    Shape("micro/4k", 4, 1024, "a micro-batch: little but the calls"),
    Shape("batch/4M", 512, 8192, "a whole batch, beyond any cache"),
)
SHAPES = {"cpu": _BOTH, "cuda": _BOTH}
QUICK = {"cpu": ("group/64k",), "cuda": ("group/64k",)}
DTYPES = ("float32",)
Loss = Callable[..., Tensor]


class Case:
    """Responses of any length, padded to T."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> None:
        self.moved: dict[str, int] = {}  # calls and launches take the time: bytes say little of it
        random = torch.Generator().manual_seed(seed)
        rows, columns = shape.rows, shape.vocab

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=random)

        log_probs = -normal(rows, columns).abs()
        given = log_probs, log_probs + 0.1 * normal(rows, columns)
        given += (log_probs + 1e-3 * normal(rows, columns),)
        given += normal(rows), normal(rows)
        lengths = torch.randint(columns // 2, columns + 1, (rows, 1), generator=random)
        mask = (torch.arange(columns) < lengths).to(device)
        # As ops take them: log_probs, ref, old, rewards, log_z, loss_mask.
        self.inputs = (*(t.to(device=device, dtype=dtype) for t in given), mask)
        self.leaves = self.inputs[0].requires_grad_(), self.inputs[4].requires_grad_()
        self.nbytes = sum(t.nbytes for t in self.inputs)
        self._truth: Tensor | None = None

    def error(self, provider: Provider, result: Any) -> float | None:
        """The largest error of the log-probs' gradient, in units of the largest of them."""
        if not isinstance(result, tuple):
            return None
        if self._truth is None:
            wide = [t.detach().double() if t.is_floating_point() else t for t in self.inputs]
            leaf = wide[0].requires_grad_()
            loss = flow_balance_loss(*wide, backend="torch").loss
            (self._truth,) = torch.autograd.grad(loss, leaf)
        scale = self._truth.abs().max()
        return ((result[0].double() - self._truth).abs().max() / scale).item()


def groups(case: Case) -> list[Group]:
    """What takes turns, for one shape."""
    compiled = torch.compile(lambda *given: flowrl(*given)[0], dynamic=False)
    providers = [
        *(_provider(case, f"logpi {row.name}", _read(row.name), "ours", row) for row in BACKENDS),
        _provider(case, "FlowRL, eager, nine .item()", _with_items),
        _provider(case, "FlowRL, eager, no metric read", lambda *given: flowrl(*given)[0]),
        _provider(case, "torch.compile of FlowRL, no metric", compiled, compiles=True),
    ]
    group = Group("training", "", providers)
    out = [group, group.warm()]
    if case.inputs[0].is_cuda:
        rows = [row for row in BACKENDS if row.name != "cpu"]
        out.append(Group("replayed", "", [_replayed(case, row) for row in rows]))
    return out


def _ours(row: str) -> Loss:
    return lambda *given: flow_balance_loss(*given, backend=row).loss


def _read(row: str) -> Loss:
    """With its metrics read, as the peer's are."""

    def run(*given: Tensor) -> Tensor:
        loss, metrics = flow_balance_loss(*given, backend=row)
        metrics.floats()
        return loss

    return run


def _provider(
    case: Case, name: str, loss: Loss, role: str = "peer", row: Any = None, compiles: bool = False
) -> Provider:
    stages = {
        "forward": lambda _: loss(*case.inputs),
        "backward": lambda value: torch.autograd.grad(value, case.leaves),
    }
    refusal = None if row is None else row.refusal(_call(case))
    return Provider(name, stages, role, refusal=refusal, compiles=compiles)


def _call(case: Case) -> Any:
    return check_call(*case.inputs, 15.0, 10.0, None, None, None)


def _replayed(case: Case, row: Any) -> Provider:
    """Forward and backward in one CUDA graph."""
    graph: list[Callable[[], None]] = []
    loss = _ours(row.name)

    def replay(_: None) -> None:
        if not graph:
            work = lambda: torch.autograd.grad(loss(*case.inputs), case.leaves)  # noqa: E731
            graph.append(captured(work, case.inputs[0].device))
        graph[0]()

    refusal = row.refusal(_call(case))
    return Provider(f"logpi {row.name}", {REPLAY: replay}, "ours", refusal=refusal)


# ---- what FlowRL does, in our words -------------------------------------------------------------


def _sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    return (torch.where(mask, values, 0.0) * mask).sum(dim)  # both, as verl does


def _mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    return _sum(values, mask, dim) / (mask.sum(dim) + 1e-8)


def flowrl(
    log_probs: Tensor, ref: Tensor, old: Tensor, rewards: Tensor, log_z: Tensor, mask: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Three masked means, a masked sum, the loss; and the metrics, not yet read."""
    advantages = rewards[:, None].expand_as(log_probs)  # along the tokens, as its trainer has them
    reward = _mean(advantages, mask, -1)
    delta = log_z + _mean(log_probs, mask, -1) - 15 * reward - _mean(ref, mask, -1)
    weight = _sum(log_probs - old, mask, -1).exp().detach().clamp(max=10)
    loss = (weight * delta**2).mean()
    told = {
        "log_prob": _mean(log_probs, mask),
        "old_log_prob": _mean(old, mask),
        "ref_log_prob": _mean(ref, mask),
        "log_z": log_z.mean(),
        "log_reward": _mean(advantages, mask),
        "final_loss": loss,
        "importance_weight": weight.mean(),
        "ppo_kl": _mean(old - log_probs, mask),
        "ref_kl": _mean(ref - log_probs, mask),
    }
    return loss, told


def _with_items(*given: Tensor) -> Tensor:
    loss, told = flowrl(*given)
    for value in told.values():
        value.detach().item()
    return loss


_WHOLE = (TOTAL, "")
_EAGER = "FlowRL, eager, nine"
TARGETS = {
    "cpu": (
        *(
            Target("times FlowRL", shape, _WHOLE, "ratio", 10.0, against=_EAGER, caches=caches)
            for shape in ("[64, 1024]", "[8, 8192]")
            for caches in ("warm", "cold")
        ),
        Target("times the best peer", "[512, 8192]", _WHOLE, "ratio", 1.0, against=""),
    ),
    "cuda": (
        Target("times FlowRL", "[64, 1024]", _WHOLE, "ratio", 10.0, against=_EAGER),
        Target("µs in a graph", "[64, 1024]", (REPLAY, ""), "us", 12.0),
    ),
}
