"""Argument checks: every message names the argument, what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")


def dtype(name: str, value: Any, *allowed: torch.dtype) -> None:
    tensor(name, value)
    if value.dtype not in allowed:
        names = " or ".join(str(one).removeprefix("torch.") for one in allowed)
        raise TypeError(f"{name}: expected {names}, got {str(value.dtype).removeprefix('torch.')}")


def shape(name: str, value: Tensor, expected: Sequence[int]) -> None:
    if value.shape != expected and tuple(value.shape) != tuple(expected):
        raise ValueError(f"{name}: expected shape {tuple(expected)}, got {tuple(value.shape)}")


def device(name: str, value: Tensor, expected: torch.device) -> None:
    if value.device != expected:
        raise ValueError(f"{name}: expected a tensor on {expected}, got one on {value.device}")


def positive(name: str, value: float) -> None:
    """A finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not 0 < value < math.inf:  # not isfinite: torch.compile cannot trace it for a symbol
        raise ValueError(f"{name}: expected a finite number above 0, got {value}")


def number(name: str, value: float) -> None:
    """A finite number."""
    if type(value) is float and math.isfinite(value):
        return  # most are
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")


def not_negative(name: str, value: float) -> None:
    """A finite number of at least 0."""
    number(name, value)
    if value < 0:
        raise ValueError(f"{name}: expected a number of at least 0, got {value}")


def at_least(name: str, value: int, least: int) -> None:
    """An int of at least so much."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def differentiated_once(op: str) -> None:
    """For the backward of a kernel. once_differentiable raises where the upstream gradient depends
    on an input, and elsewhere lets the derivative be lost."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{op}: the gradients of a kernel have no derivative, and create_graph=True asked for "
            "one; use backend='torch'"
        )


def whole(name: str, value: Any) -> None:
    """A tensor that holds all of its values: no shard of a parallel trainer."""
    tensor(name, value)
    if hasattr(value, "full_tensor"):  # DTensor: FSDP2, tensor parallelism
        raise TypeError(
            f"{name}: expected a whole tensor, got a DTensor sharded as {value.placements}; pass "
            f"{name}.full_tensor(), which gathers it (for data-parallel ranks with "
            'grad_placements=[Partial("avg")], lest each keep its own gradient); or, where rows '
            f"are spread over the vocabulary, {name}.to_local() with process_group= and "
            "vocab_start=, which linear_log_probs takes"
        )
    if hasattr(value, "ds_id"):  # ZeRO-3: empty outside its gather
        raise TypeError(
            f"{name}: expected a whole tensor, got a ZeRO-3 parameter, whose values are on other "
            "ranks; use ZeRO-2 or FSDP2, or pass a copy made inside GatheredParameters"
        )
