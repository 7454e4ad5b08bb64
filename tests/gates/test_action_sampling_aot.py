"""The Triton kernel of action_sampling compiled for GPUs that are not here: nothing fused, and a
new shape compiles none again."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter and the compiler do not share a process", allow_module_level=True)

from aot import TARGETS, compiled
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from logpi.ops.action_sampling import ActionCodec, _triton
from logpi.ops.action_sampling import _triton_kernels as kernels
from logpi.ops.action_sampling.op import Call, check_call

ARGUMENTS: dict[str, Any] = {
    "logits": "*bf16",
    "temperatures": None,
    "step_at": None,
    "row_ids": None,
    "token_ids": "*i64",
    "BLOCK": 256,
    "FULL": True,
    "DIMS": 1,
    "ALIGNED": True,
    "GREEDY": False,
}
ALL = {"temperatures": "*fp32", "step_at": "*i64", "row_ids": "*i64", "DIMS": 4}
ALL |= {"logits": "*fp32", "FULL": False, "ALIGNED": False}
# name: arguments, most registers of the one warp
VARIANTS: dict[str, tuple[dict[str, Any], int]] = {
    "bf16": ({"entropy": None}, 128),
    "float32, all": (ALL, 128),
    "greedy": ({"GREEDY": True}, 128),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", VARIANTS)
def test_what_the_compiler_makes(name: str, target: str) -> None:
    changes, registers = VARIANTS[name]
    known = ARGUMENTS | changes
    kernel = kernels.sample_kernel
    arguments = {p.name: known.get(p.name, p.annotation_type or "*fp32") for p in kernel.params}
    made = compiled(kernel, arguments, target, 32, enable_fp_fusion=False)
    print(f"\n{target:7} {name}: registers {made.registers}, shared {made.shared}")  # noqa: T201
    fused = sum(made.code[name] for name in ("DFMA", "v_fma_f64"))
    assert fused < 40  # of the divisions: 8 weights a lane would be 56 (28 of 4) more
    if target.startswith("sm") and name != "float32, all":
        assert sum(n for one, n in made.code.items() if one.startswith("LDG.E.128")) == 1
    assert made.spilled == 0
    assert not [name for name in made.code if name.startswith(("LDL", "STL", "scratch_"))]
    assert made.registers <= registers * (2 if target.startswith("gfx") else 1)


def test_a_shape_a_draw_and_a_temperature_compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found: set[str] = set()

    def launch(kernel: JITFunction, *args: Any, **kwargs: Any) -> None:
        backend = make_backend(GPUTarget("cuda", 90, 32))
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        _, specialisation, options = bind(*args, **kwargs)
        found.add(f"{specialisation} {options}")

    monkeypatch.setattr(
        JITFunction,
        "__getitem__",
        lambda self, grid: lambda *args, **kwargs: launch(self, *args, **kwargs),
    )

    def call(rows: int, greedy: bool = False, **codec: Any) -> Call:
        made = ActionCodec(**codec)
        width = made.vocab_size
        seed, temperature = rows << 40, 1 / rows
        x = torch.zeros(rows, width)
        return check_call(x, None, made, temperature, seed, rows, None, greedy, None, True)

    for rows in (1, 2, 16, 17, 448):
        _triton.sample(call(rows, num_bins=250, vocab_size=256))
        _triton.sample(call(rows, num_bins=254, vocab_size=284, low=[0], high=[1]))
    assert len(found) == 1
    _triton.sample(call(3, num_bins=250, vocab_size=256, greedy=True))  # the count can rise
    _triton.sample(call(3, num_bins=257, vocab_size=300))
    _triton.sample(call(3, num_bins=256, vocab_size=256))
    assert len(found) == 4
