"""The compiled CUDA launchers: whether they can run here, on which device, on which stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

_emulator: ModuleType | None = None
# Every call asks, and a process keeps its answers; functools.cache would stop torch.compile.
_found: list[str | None] = []  # why no launcher can run
_gpu: list[bool] = []


def launchers() -> ModuleType:
    """The module with the launchers: `_C`, or in tests the same sources compiled for a CPU."""
    if _emulator is not None:
        return _emulator
    from logpi import _C

    return _C


def unavailable() -> str | None:
    """Why no launcher can run on this machine, or None."""
    if _emulator is not None:
        return None
    if not _found:
        _found.append(_no_gpu())
    return _found[0]


def _no_gpu() -> str | None:
    if not launchers().has_cuda:
        return "logpi was built without its CUDA kernels (no nvcc was found, or LOGPI_CUDA=OFF)"
    if torch.version.hip is not None:
        return "needs an NVIDIA GPU, and this torch is built for AMD's"
    if not torch_sees_a_gpu():
        return "torch sees no NVIDIA GPU"
    return None


def torch_sees_a_gpu() -> bool:
    """Of whatever make."""
    if not _gpu:
        _gpu.append(torch.cuda.is_available())
    return _gpu[0]


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
