"""Where the GPU tests run: each body once on the CPU, which proves it, and once a row on a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from logpi import KeepSet
from logpi.testing import allocations


@dataclass(frozen=True)
class Place:
    """A row of the backend table and the device it runs on."""

    row: str
    device: str

    @property
    def gpu(self) -> bool:
        return self.device == "cuda"

    def holds(self, value: Any) -> Any:
        """`value` here: tensors with their layout and all that lies around them, containers too."""
        if isinstance(value, Tensor):
            whole = value if value._base is None else value._base
            moved = whole.to(self.device, copy=True)
            return moved.as_strided(value.shape, value.stride(), value.storage_offset())
        if isinstance(value, KeepSet):
            return KeepSet(self.holds(value.indptr), self.holds(value.indices))
        if isinstance(value, dict):
            return {name: self.holds(one) for name, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.holds(one) for one in value]
        return value

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info()[0] if self.gpu else 1 << 40

    def synchronize(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    @contextmanager
    def busy_stream(self) -> Iterator[None]:
        """Within it work goes to a stream of its own, and waits there for some 20 ms."""
        if not self.gpu:
            yield
            return
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(40_000_000)  # cycles
            yield
        torch.cuda.synchronize()

    def without_sync(self) -> AbstractContextManager[None]:
        """Within it whatever makes the host wait for the device raises RuntimeError."""
        return _no_sync() if self.gpu else nullcontext()

    def recorded(self, step: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
        """`step` to run again on what its inputs hold by then: on a GPU, a captured graph."""
        if not self.gpu:
            return step
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # modules are loaded and Triton compiles before the capture
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = step()

        def replay() -> list[Tensor]:
            graph.replay()
            return results

        return replay

    def peak_bytes(self, work: Callable[[], Any]) -> int:
        """Memory above what was allocated before, at its highest, results included."""
        if not self.gpu:
            with allocations() as sizes:
                work()
            return sum(sizes)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


@contextmanager
def _no_sync() -> Iterator[None]:
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "a prototype feature"
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


CPU = pytest.param(Place("cpu", "cpu"), id="cpu")
GPU = [
    pytest.param(Place(row, "cuda"), id=row, marks=pytest.mark.gpu) for row in ("cuda", "triton")
]


def _ready(place: Place) -> Place:
    if place.gpu and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU: torch sees none")
    return place


@pytest.fixture(params=[CPU, *GPU])
def place(request: pytest.FixtureRequest) -> Place:
    """The CPU row, and both rows of a GPU."""
    return _ready(request.param)


@pytest.fixture(params=GPU)
def gpu_place(request: pytest.FixtureRequest) -> Place:
    """For what only a GPU promises."""
    return _ready(request.param)
