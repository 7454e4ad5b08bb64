"""A new length, temperature, stride or address must not compile a kernel again."""

from __future__ import annotations

import inspect
import os

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter has no compiler to ask", allow_module_level=True)

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from logpi.ops.flow_balance import _triton as _flow
from logpi.ops.flow_balance import _triton_kernels as _flow_kernels
from logpi.ops.flow_balance.op import check_call as check_flow_call
from logpi.ops.linear_log_probs import _triton as _tiles
from logpi.ops.linear_log_probs import _triton_kernels as _tile_kernels
from logpi.ops.linear_log_probs._finish import new_state
from logpi.ops.token_log_probs import _triton, _triton_backward, _triton_kernels
from logpi.ops.token_log_probs.op import Call, check_call


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """By kernel, the keys under which launches would have looked for compiled code: what the JIT
    itself makes of the arguments, without the driver that it then asks for a device."""
    found: dict[str, set[str]] = {}

    def launch(kernel: JITFunction, *args, grid, **kwargs) -> None:
        backend = make_backend(GPUTarget("cuda", 90, 32))
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        _, specialisation, options = bind(*args, **kwargs)
        found.setdefault(kernel.__name__, set()).add(f"{specialisation} {options}")

    def get_item(self: JITFunction, grid):
        return lambda *args, **kwargs: launch(self, *args, grid=grid, **kwargs)

    monkeypatch.setattr(JITFunction, "__getitem__", get_item)
    return found


def check(logits: torch.Tensor, **options) -> Call:
    ids = torch.zeros(len(logits), dtype=torch.int64)
    arguments = {"temperature": 1.0, "support": None, "vocab_size": None, "loss_mask": None}
    arguments |= {"softcap": None, "logit_scale": 1.0} | options
    return check_call(logits, ids, *arguments.values(), (True,) * 5, False)


def run(num_rows: int, columns: int, **options) -> None:
    call = check(torch.randn(num_rows, columns + 8)[:, :columns], **options)
    out, stats = _triton.forward(call, True)
    _triton.backward(call, out.log_probs, stats, torch.ones(num_rows), torch.ones(num_rows))


def run_tile(num_rows: int, begin: int, width: int, **options) -> None:
    call = check(torch.empty(1).expand(num_rows, begin + width), **options)._replace(
        logits=torch.randn(num_rows, width),
        support_begin=begin,
        support_end=begin + width,
        first_column=begin,
        inplace_backward=True,
    )
    _tiles.fold(call, *new_state(call))
    ones = torch.ones(num_rows)
    _tiles.backward(call, ones, torch.ones(num_rows, 3), ones, ones)


def test_ten_lengths_compile_once(keys: dict[str, set[str]]) -> None:
    for step, length in enumerate((1, 2, 7, 16, 17, 64, 100, 255, 1000, 4096)):
        run(length, 32 + 16 * step, temperature=1.0 / (1 + step), logit_scale=1.0 + step)
    assert {name: len(found) for name, found in keys.items()} == {
        "forward_kernel": 1,
        "backward_kernel": 1,
    }


def test_ten_tiles_compile_once(keys: dict[str, set[str]]) -> None:
    for step, length in enumerate((1, 2, 7, 16, 17, 64, 100, 255, 1000, 4096)):
        run_tile(length, 5 * step, 32 + 16 * step, temperature=1.0 / (1 + step))
    assert {name: len(found) for name, found in keys.items()} == {
        "fold_kernel": 1,
        "backward_kernel": 1,
    }


def test_ten_batches_of_sequences_compile_once(keys: dict[str, set[str]]) -> None:
    for step, length in enumerate((1, 2, 7, 16, 17, 64, 100, 255, 1000, 4096)):
        tokens = [torch.randn(step + 1, length + 8)[:, :length] for _ in range(3)]
        mask = torch.ones(step + 1, length, dtype=torch.bool)
        given = (*tokens, torch.randn(step + 1), torch.randn(step + 1), mask)
        call = check_flow_call(*given, 1.0 + step, 2.0 + step, None, None, 3 + step)
        _, _, slopes = _flow.forward(call)
        _flow.backward(mask, slopes, torch.ones(()), (True, True))
    assert {name: len(found) for name, found in keys.items()} == {
        "pieces_kernel": 1,
        "finish_kernel": 1,
        "gradient_kernel": 1,
    }


def test_an_option_is_another_kernel(keys: dict[str, set[str]]) -> None:
    """The count above can rise."""
    run(4, 32)
    run(4, 32, softcap=3.0)
    run(4, 33)  # rows that begin anywhere are loaded in other steps
    assert len(keys["forward_kernel"]) == 3
    run_tile(4, 0, 32)
    run_tile(4, 0, 32, softcap=3.0)
    run_tile(4, 0, 33)
    assert len(keys["fold_kernel"]) == 3


def test_kernels_are_jitted_without_specialisation() -> None:
    for module in (_triton_kernels, _triton_backward, _tile_kernels, _flow_kernels):
        for name, kernel in inspect.getmembers(module):
            if name.endswith("_kernel"):
                for parameter in kernel.params:
                    assert parameter.is_constexpr or parameter.do_not_specialize, parameter.name
