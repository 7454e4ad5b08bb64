"""Where a row `triton` can run: a GPU of whatever make, or in tests a CPU, interpreted."""

from __future__ import annotations

import os
from importlib.util import find_spec

from torch import Tensor

from logpi.core import cuda

_HAS_TRITON = find_spec("triton") is not None  # found, not imported
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it once as well


def unavailable() -> str | None:
    """Why no Triton kernel can run on this machine, or None."""
    if not _HAS_TRITON:
        return "needs the package triton, which is not installed"
    if not INTERPRETED and not cuda.torch_sees_a_gpu():
        return "needs a GPU, and found none (nor TRITON_INTERPRET=1, which runs it on a CPU)"
    return None


def misplaced(name: str, tensor: Tensor) -> str | None:
    """Why a kernel cannot take `tensor` where it lies, or None."""
    if tensor.device.type == ("cpu" if INTERPRETED else "cuda"):
        return None
    where = "a CPU, where Triton's interpreter runs" if INTERPRETED else "a GPU"
    return f"needs {name} on {where}, got {tensor.device}"
