"""The frameworks that are not installed by default, as fixtures that skip."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any
from unittest.mock import MagicMock

import pytest


class _MockedRay(MetaPathFinder, Loader):
    """Whatever is imported of Ray is a mock: it is 240 MB, and no formula needs it."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "ray" else None

    def create_module(self, spec: ModuleSpec) -> Any:
        return MagicMock(__path__=[], __name__=spec.name)

    def exec_module(self, module: Any) -> None: ...


@pytest.fixture(scope="session")
def verl() -> Any:
    """verl's core_algos, the registered losses and advantages."""
    if importlib.util.find_spec("verl") is None:  # importing it needs the mock
        pytest.skip("needs verl: tests/verl-requirements.txt")
    if importlib.util.find_spec("ray") is None:
        sys.meta_path.append(_MockedRay())
    return importlib.import_module("verl.trainer.ppo.core_algos")


@pytest.fixture(scope="session")
def vllm() -> Any:
    """vLLM's Python files; what they compile to is not needed."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("needs vLLM: tests/vllm-requirements.txt")
    return importlib.import_module("vllm")
