"""gae's Triton kernels compiled for GPUs that are not here; a new length compiles none again."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter and the compiler do not share a process", allow_module_level=True)

from aot import TARGETS, compiled
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from logpi.ops.gae import _triton
from logpi.ops.gae import _triton_kernels as kernels
from logpi.ops.gae.op import check_call

# name: kernel, arguments that are not float32*, most registers (65536 / 512 threads)
MASK = {"loss_mask": "*i1", "BLOCK": _triton.BLOCK}
VARIANTS = {
    "scan": (kernels.scan_kernel, MASK | {"moments": None}, 128),
    "scan, moments": (kernels.scan_kernel, MASK | {"moments": "*fp64", "advantages": "*fp64"}, 128),
    "whiten": (kernels.whiten_kernel, MASK | {"moments": "*fp64", "raw": "*fp64"}, 128),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", VARIANTS)
def test_what_the_compiler_makes(name: str, target: str, record_property) -> None:
    kernel, known, registers = VARIANTS[name]
    arguments = {p.name: known.get(p.name, p.annotation_type or "*fp32") for p in kernel.params}
    made = compiled(kernel, arguments, target, _triton.THREADS)
    print(f"\n{target:7} {name}: registers {made.registers}, shared {made.shared}")  # noqa: T201
    record_property("registers", made.registers)
    assert made.spilled == 0
    assert not [name for name in made.code if name.startswith(("LDL", "STL", "scratch_"))]
    assert made.registers <= registers * (2 if target.startswith("gfx") else 1)


def test_lengths_and_rates_compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, set[str]] = {}

    def launch(kernel: JITFunction, *args, grid, **kwargs) -> None:
        backend = make_backend(GPUTarget("cuda", 90, 32))
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        _, specialisation, options = bind(*args, **kwargs)
        found.setdefault(kernel.__name__, set()).add(f"{specialisation} {options}")

    monkeypatch.setattr(
        JITFunction,
        "__getitem__",
        lambda self, grid: lambda *args, **kwargs: launch(self, *args, grid=grid, **kwargs),
    )
    for length in (1, 2, 16, 17, 100, 4096, 5000):
        x = torch.zeros(1 + length % 3, length)
        for rate in (1.0, 0.0, 0.99):
            _triton.forward(check_call(x, x, x.bool(), rate, rate, True))
    assert {name: len(keys) for name, keys in found.items()} == {
        "scan_kernel": 1,
        "whiten_kernel": 1,
    }
    _triton.forward(check_call(x, x, x.bool(), 1.0, 1.0, False))  # the count can rise
    assert len(found["scan_kernel"]) == 2


def test_rates_keep_48_bits() -> None:
    for rate in (0.99, 1 / 3, 1e-3, 1.0, 0.0):
        high, low = _triton._halves(rate)
        assert torch.tensor(high).item() == high
        assert abs(high + torch.tensor(low).item() - rate) <= 2.0**-48 * rate
