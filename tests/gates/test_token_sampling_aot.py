"""token_sampling's Triton kernels compiled for GPUs that are not here; new numbers compile none
again."""

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

from logpi.ops.token_sampling import _triton
from logpi.ops.token_sampling import _triton_kernels as kernels
from logpi.ops.token_sampling.op import check_call

TYPES = {
    "base": "*bf16",
    "row_ids": "*i64",
    "temperatures": "*fp64",
    "top_ks": "*i64",
    "top_ps": "*fp64",
    "min_ps": "*fp64",
    "step_at": "*i64",
    "token_ids": "*i64",
    "log_probs": "*fp32",
    "entropy": "*fp32",
    "cuts": "*fp32",
    "counts": "*i64",
    "indptr": "*i64",
    "indices": "*i32",
    "DIMS": 1,
    "ALIGNED": True,
    "BLOCK": _triton.BLOCK,
}
SCALARS = dict.fromkeys(("row_ids", "temperatures", "top_ks", "top_ps", "min_ps", "step_at"))
PLAIN = {"TOP_K": False, "TOP_P": False, "MIN_P": False, "GREEDY": False}
EVERY = {"TOP_K": True, "TOP_P": True, "MIN_P": True, "GREEDY": False}
VARIANTS = {  # kernel, arguments
    "plain": (kernels.sample_kernel, TYPES | SCALARS | PLAIN | {"cuts": None, "counts": None}),
    "truncated": (kernels.sample_kernel, TYPES | SCALARS | EVERY),
    "a number a row": (kernels.sample_kernel, TYPES | EVERY | {"base": "*fp32"}),
    "kept ids": (kernels.kept_kernel, TYPES),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", VARIANTS)
def test_what_the_compiler_makes(name: str, target: str, record_property) -> None:
    kernel, known = VARIANTS[name]
    arguments = {p.name: known.get(p.name, p.annotation_type) for p in kernel.params}
    made = compiled(kernel, arguments, target, _triton.THREADS)
    print(f"\n{target:7} {name}: registers {made.registers}, shared {made.shared}")  # noqa: T201
    record_property("registers", made.registers)
    assert made.spilled == 0
    assert made.registers <= 65536 // _triton.THREADS * (2 if target.startswith("gfx") else 1)


def test_numbers_and_lengths_compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(torch.Tensor, "cumsum_", lambda self, dim: self)  # of counts never written
    for length in (16, 128, 2000, 151936):
        for k, p in ((1, 0.5), (7, 0.9), (15, 1e-3)):
            z = torch.zeros(2, length)
            call = check_call(z, p, k, p, p, k, k, None, False, None, True, True)
            _triton.forward(call)
    assert {name: len(keys) for name, keys in found.items()} == {
        "sample_kernel": 1,
        "kept_kernel": 1,
    }
