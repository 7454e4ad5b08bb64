"""Work recorded once and replayed without the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def captured(work: Callable[[], Any], device: torch.device) -> Callable[[], None]:
    """`work` as a CUDA graph; on a CPU, which has none, `work` itself."""
    if device.type != "cuda":
        return work
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):  # compilers run, and modules are loaded, before the capture
        for _ in range(2):
            work()
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
