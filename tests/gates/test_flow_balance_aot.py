"""The Triton kernels of flow_balance compiled for GPUs not here: no spills, few registers."""

from __future__ import annotations

import os
from typing import Any

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter and the compiler do not share a process", allow_module_level=True)

from aot import TARGETS, compiled

from logpi.ops.flow_balance import _triton_kernels as kernels
from logpi.ops.flow_balance._triton import BLOCK, ROWS, THREADS

# What a launch passes; every argument not named here is float32*.
COMMON = {
    "loss_mask": "*i1",
    "sums": "*fp64",
    "slopes": "*fp64",
    "divisor": None,
    "BLOCK": BLOCK,
    "ROWS": ROWS,
}
# kernel, arguments, threads, most registers
VARIANTS: dict[str, tuple[Any, dict[str, Any], int, int]] = {
    "pieces": (kernels.pieces_kernel, {}, THREADS, 64),
    "finish": (kernels.finish_kernel, {}, ROWS, 128),
    "finish, a divisor": (kernels.finish_kernel, {"divisor": "*fp64"}, ROWS, 128),
    "gradient": (kernels.gradient_kernel, {}, THREADS, 32),
    "gradient of log_z": (kernels.gradient_kernel, {"grad_log_probs": None}, THREADS, 32),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", VARIANTS)
def test_what_the_compiler_makes(name: str, target: str) -> None:
    kernel, changes, threads, registers = VARIANTS[name]
    known = COMMON | changes
    arguments = {p.name: known.get(p.name, p.annotation_type or "*fp32") for p in kernel.params}
    made = compiled(kernel, arguments, target, threads)
    count = sum(made.code.values())
    print(f"\n{target:7} {name}: registers {made.registers}, instructions {count}")  # noqa: T201
    assert made.spilled == 0
    assert not [code for code in made.code if code.startswith(("LDL", "STL", "scratch_"))]
    assert made.registers <= registers * (2 if target.startswith("gfx") else 1)
