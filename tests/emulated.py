"""The `cuda` rows on a CPU: docs/design/emulator.md."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from logpi.core import cuda

sys.path.insert(0, str(Path(__file__).parent / "cpp"))

import build

VARIANT = os.environ.get("LOGPI_EMULATOR", "plain")


@cache
def _module() -> ModuleType | str:
    try:
        folder = build.build(VARIANT)
    except build.CannotBuildError as error:
        return str(error)
    sys.path.insert(0, str(folder))
    return importlib.import_module("_C_emulated")


@contextmanager
def kernels() -> Iterator[None]:
    """Within it, `backend="cuda"` serves CPU tensors; skips where the emulator cannot be built."""
    module = _module()
    if isinstance(module, str):
        pytest.skip(module)
    with cuda.emulate(module):
        yield
