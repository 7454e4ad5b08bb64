"""The compiled CUDA launchers: whether they can run here, on which device, on which stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import torch

_emulator: ModuleType | None = None


def launchers() -> ModuleType:
    """The module with the launchers: `_C`, or in tests the same sources compiled for a CPU."""
    if _emulator is not None:
        return _emulator
    from logpi import _C

    return _C


def unavailable() -> str | None:
    """Why no launcher can run on this machine, or None."""
    return None if _emulator is not None else _no_gpu()


@cache  # every call asks, and a process keeps its answer
def _no_gpu() -> str | None:
    if not launchers().has_cuda:
        return "logpi was built without its CUDA kernels (no nvcc was found, or LOGPI_CUDA=OFF)"
    if torch.version.hip is not None:
        return "needs an NVIDIA GPU, and this torch is built for AMD's"
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    return None


def device_type() -> str:
    """The type of the tensors that the launchers take."""
    return "cuda" if _emulator is None else "cpu"


def index(device: torch.device) -> int:
    """The number of a GPU."""
    return device.index or 0


def stream(device: torch.device) -> int:
    """The address of the stream that torch is using on this device."""
    return 0 if _emulator is not None else torch.cuda.current_stream(device).cuda_stream


@contextmanager
def emulate(module: ModuleType) -> Iterator[None]:
    """Within it, `backend="cuda"` runs the kernels of `module` on CPU tensors. For tests only."""
    global _emulator
    before, _emulator = _emulator, module
    try:
        yield
    finally:
        _emulator = before
