"""Small calls of every kernel for compute-sanitizer: `small_calls.py DEVICE ROW..`.

All data is made on the CPU, so that nearly every kernel that runs is ours, and compared there with
the CPU row. PYTORCH_NO_CUDA_MEMORY_CACHING=1 gives each tensor an allocation with edges of its own.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import torch
from torch import Tensor

from logpi import KeepSet, token_log_probs
from logpi.ops import linear_log_probs
from logpi.ops.linear_log_probs._finish import finish, new_state
from logpi.ops.token_log_probs.op import Call, check_call

ALL = {f"return_{name}": True for name in ("entropy", "collision", "lse", "top1", "mean_logit")}
SHAPES = ((3, 1031), (2, 20_011), (265, 67))  # ragged rows; rows that are split; many rows
Options = dict[str, Any]


def options(rows: int, columns: int) -> list[Options]:
    g = torch.Generator().manual_seed(1)
    kept = [torch.randperm(columns, generator=g)[: 3 + row % 5].tolist() for row in range(rows)]
    warm = 0.5 + torch.rand(rows, generator=g)
    return [
        {},
        ALL,
        {**ALL, "vocab_size": columns - 9, "support": slice(5, columns - 13)},
        {**ALL, "support": KeepSet.from_lists(kept), "temperature": warm},
        {**ALL, "softcap": 20.0, "loss_mask": warm < 1.0, "logit_scale": 0.7},
        {"return_entropy": True, "inplace_backward": True},
    ]


def run(row: str, device: str) -> int:
    """How many calls were made; raises on the first that differs from the CPU row."""
    return run_rows(row, device) + run_tiles(row, device)


def run_rows(row: str, device: str) -> int:
    """token_log_probs."""
    calls = 0
    for (rows, columns), dtype in itertools.product(SHAPES, (torch.float32, torch.bfloat16)):
        g = torch.Generator().manual_seed(0)
        logits = torch.randn(rows, columns + 1, generator=g).to(dtype)  # the first is left out:
        ids = torch.randint(5, columns - 13, (rows,), generator=g)  # no row is aligned
        upstream = torch.randn(rows, generator=g)
        for chosen in options(rows, columns):
            ours, expected = (
                _call(name, *(_on(where, one) for one in (logits, ids, upstream, chosen)))
                for name, where in ((row, device), ("cpu", "cpu"))
            )
            _assert_near(ours, expected)
            calls += 1
    return calls


def run_tiles(row: str, device: str) -> int:
    """linear_log_probs' fold of three tiles and their gradients, without the products."""
    calls = 0
    for (rows, columns), dtype in itertools.product(SHAPES, (torch.float32, torch.bfloat16)):
        g = torch.Generator().manual_seed(0)
        logits = torch.randn(rows, columns, generator=g).to(dtype)
        ids = torch.randint(columns, (rows, 2), generator=g)
        upstream = torch.randn(rows, 2, generator=g), torch.randn(rows, generator=g)
        warm = 0.5 + torch.rand(rows, generator=g)
        for temperature, mask, softcap in ((1.0, None, None), (warm, warm < 1.0, 20.0)):
            call = check_call(
                logits, ids, temperature, None, None, mask, softcap, 0.7, (True,) * 5, True
            )
            ours, expected = (
                _tiles(name, where, call, upstream) for name, where in ((row, device), ("cpu",) * 2)
            )
            _assert_near(ours, expected)
            calls += 1
    return calls


def _tiles(row: str, device: str, call: Call, upstream: tuple[Tensor, Tensor]) -> list[Tensor]:
    kernels = next(one for one in linear_log_probs.BACKENDS if one.name == row).kernels
    state, targets = (_on(device, one) for one in new_state(call))
    here = Call(*(_on(device, one) for one in call))
    edges = [0, call.vocab_size // 3, call.vocab_size // 2, call.vocab_size]
    parts = [
        here._replace(
            logits=here.logits[:, begin:end].contiguous(),
            support_begin=begin,
            support_end=end,
            first_column=begin,
        )
        for begin, end in itertools.pairwise(edges)
    ]
    for part in parts:
        kernels.fold(part, state, targets)
    ends = state.cpu(), targets.cpu()  # the rest of torch is not looked at
    out, stats = finish(call, *ends, call.vocab_size, kernels.REFERENCE)
    saved = [_on(device, one) for one in (out.log_probs, stats, *upstream)]
    grads = [kernels.backward(part, *saved) for part in parts]
    keep = slice(None) if call.loss_mask is None else call.loss_mask
    return [one[keep] for one in out if one is not None] + [torch.cat(grads, 1)]


def _assert_near(ours: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(ours, expected, strict=True):  # roughly: the tests are exact
        torch.testing.assert_close(one.cpu(), other, rtol=2e-2, atol=1e-4)


def _call(row: str, logits: Tensor, ids: Tensor, upstream: Tensor, chosen: Options) -> list[Tensor]:
    leaf = logits[:, 1:].detach().requires_grad_()
    out = token_log_probs(leaf, ids, backend=row, **chosen)
    heads = [one for one in out[:2] if one is not None]
    grads = torch.autograd.grad(heads, leaf, [upstream] * len(heads))
    return [one.detach() for one in out if one is not None] + list(grads)


def _on(device: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, copy=True)  # some are written over
    if isinstance(value, KeepSet):
        return KeepSet(value.indptr.to(device), value.indices.to(device))
    if isinstance(value, dict):
        return {name: _on(device, one) for name, one in value.items()}
    return value


if __name__ == "__main__":
    for name in sys.argv[2:]:
        sys.stdout.write(f"{name}: {run(name, sys.argv[1])} calls\n")
