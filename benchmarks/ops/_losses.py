"""What is alike in the benchmarks of losses of [B, T] log-probs, beside eager code that reads its
metrics with `.item()`: ours are read in one copy. On a GPU ours is also captured in a graph, its
metrics unread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import REPLAY, TOTAL, Group, Provider
from benchmarks.ops._graphs import captured
from benchmarks.shapes import Shape
from benchmarks.targets import Target

_BOTH = (
    Shape("group/64k", 64, 1024, "64k tokens: the shape of the targets"),
    Shape("long/64k", 8, 8192, "64k tokens in few sequences"),
    Shape("micro/4k", 4, 1024, "a micro-batch: little but the calls"),
    Shape("batch/4M", 512, 8192, "a whole batch, beyond any cache"),
)
SHAPES = {"cpu": _BOTH, "cuda": _BOTH}
QUICK = {"cpu": ("group/64k",), "cuda": ("group/64k",)}
DTYPES = ("float32",)
Normal = Callable[..., Tensor]
Op = Callable[..., Any]  # (*inputs, backend=) -> (loss, metrics)
Loss = Callable[..., Tensor]


class Case:
    """Responses of any length, padded to T."""

    def __init__(
        self,
        shape: Shape,
        dtype: torch.dtype,
        device: str,
        seed: int,
        given: Callable[[Tensor, Normal], tuple[Tensor, ...]],  # of log_probs: those and the rest
        leaves: tuple[int, ...],
        op: Op,
    ) -> None:
        self.moved: dict[str, int] = {}  # calls and launches take the time: bytes say little of it
        random = torch.Generator().manual_seed(seed)
        rows, columns = shape.rows, shape.vocab

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=random)

        floats = given(-normal(rows, columns).abs(), normal)
        lengths = torch.randint(columns // 2, columns + 1, (rows, 1), generator=random)
        mask = (torch.arange(columns) < lengths).to(device)
        # As the op takes them, the mask last.
        self.inputs = (*(t.to(device=device, dtype=dtype) for t in floats), mask)
        self.leaves = [self.inputs[at].requires_grad_() for at in leaves]
        self.nbytes = sum(t.nbytes for t in self.inputs)
        self.op = op
        self._truth: Tensor | None = None

    def error(self, provider: Provider, result: Any) -> float | None:
        """The largest error of the log-probs' gradient, in units of the largest of them."""
        if not isinstance(result, tuple):
            return None
        if self._truth is None:
            wide = [t.detach().double() if t.is_floating_point() else t for t in self.inputs]
            leaf = wide[0].requires_grad_()
            (self._truth,) = torch.autograd.grad(self.op(*wide, backend="torch").loss, leaf)
        scale = self._truth.abs().max()
        return ((result[0].double() - self._truth).abs().max() / scale).item()


def groups(
    case: Case,
    rows: Sequence[Any],
    refusal: Callable[[Any], str | None],
    peer: str,
    eager: Callable[..., tuple[Tensor, Sequence[Tensor]]],  # the loss, and the metrics to be read
) -> list[Group]:
    """What takes turns, for one shape."""

    def provider(name: str, loss: Loss, role: str = "peer", **more: Any) -> Provider:
        stages = {
            "forward": lambda _: loss(*case.inputs),
            "backward": lambda value: torch.autograd.grad(value, case.leaves),
        }
        return Provider(name, stages, role, **more)

    def ours(row: Any) -> Loss:
        def run(*given: Tensor) -> Tensor:
            loss, metrics = case.op(*given, backend=row.name)
            metrics.floats()
            return loss  # type: ignore[no-any-return]

        return run

    def read(*given: Tensor) -> Tensor:
        loss, told = eager(*given)
        for value in told:
            value.detach().item()
        return loss

    def unread(*given: Tensor) -> Tensor:
        return eager(*given)[0]

    compiled = torch.compile(lambda *given: eager(*given)[0], dynamic=False)
    group = Group(
        "training",
        "",
        [
            *(
                provider(f"logpi {row.name}", ours(row), "ours", refusal=refusal(row))
                for row in rows
            ),
            provider(f"{peer}, eager, every .item()", read),
            provider(f"{peer}, eager, no metric read", unread),
            provider(f"torch.compile of {peer}, no metric", compiled, compiles=True),
        ],
    )
    out = [group, group.warm()]
    if case.inputs[0].is_cuda:
        replayed = [_replayed(case, row, refusal(row)) for row in rows if row.name != "cpu"]
        out.append(Group("replayed", "", replayed))
    return out


def _replayed(case: Case, row: Any, refusal: str | None) -> Provider:
    """Forward and backward in one CUDA graph."""
    graph: list[Callable[[], None]] = []

    def work() -> None:
        torch.autograd.grad(case.op(*case.inputs, backend=row.name).loss, case.leaves)

    def replay(_: None) -> None:
        if not graph:
            graph.append(captured(work, case.inputs[0].device))
        graph[0]()

    return Provider(f"logpi {row.name}", {REPLAY: replay}, "ours", refusal=refusal)


def targets(peer: str, times: float, us_in_a_graph: float) -> dict[str, tuple[Target, ...]]:
    """So many times the eager code at 64k tokens, and no slower than anybody at 4M."""
    whole, eager, label = (TOTAL, ""), f"{peer}, eager, every", f"times {peer}"
    return {
        "cpu": (
            *(
                Target(label, shape, whole, "ratio", times, against=eager, caches=caches)
                for shape in ("[64, 1024]", "[8, 8192]")
                for caches in ("warm", "cold")
            ),
            Target("times the best peer", "[512, 8192]", whole, "ratio", 1.0, against=""),
        ),
        "cuda": (
            Target(label, "[64, 1024]", whole, "ratio", times, against=eager),
            Target("µs in a graph", "[64, 1024]", (REPLAY, ""), "us", us_in_a_graph),
        ),
    }
