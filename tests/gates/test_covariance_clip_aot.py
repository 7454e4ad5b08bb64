"""The Triton kernels of covariance_clip compiled for GPUs that are not here, and how often."""

from __future__ import annotations

import os
from typing import Any

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter and the compiler do not share a process", allow_module_level=True)

from aot import TARGETS, compiled

from logpi.ops.covariance_clip import _triton
from logpi.ops.covariance_clip import _triton_kernels as kernels
from logpi.ops.covariance_clip.op import CLIP, COVARIANCES, KL

THREADS = 128  # Triton's usual
ARGUMENTS: dict[str, Any] = {
    "loss_mask": "*i1",
    "exclude": "*i1",
    "step_at": "*i64",
    "head": "*i64",
    "counts": "*i32",
    "keys": "*i32",
    "histogram": "*i32",
    "following": "*i32",
    "ties": "*i32",
    "out": "*i1",
    "TILE": _triton.TILE,
    "SOME": _triton.SOME,
}
NONE = {"exclude": None, "step_at": None}
# name: kernel, arguments, most registers
VARIANTS: dict[str, tuple[Any, dict[str, Any], int]] = {
    "sums": (kernels.sums_kernel, {}, 255),
    "covariances": (kernels.keys_kernel, {"RULE": COVARIANCES, "out": "*fp32", **NONE}, 128),
    "keys, clip": (kernels.keys_kernel, {"RULE": CLIP}, 255),
    "keys, kl": (kernels.keys_kernel, {"RULE": KL, **NONE}, 192),
    "second digit": (kernels.digit_kernel, {"AT": 0}, 192),
    "third digit": (kernels.digit_kernel, {"AT": 1}, 192),
    "ties": (kernels.ties_kernel, {}, 128),
    "mark": (kernels.mark_kernel, {}, 128),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", VARIANTS)
def test_what_the_compiler_makes(name: str, target: str) -> None:
    kernel, changes, budget = VARIANTS[name]
    known = ARGUMENTS | changes
    arguments = {p.name: known.get(p.name, p.annotation_type or "*fp32") for p in kernel.params}
    made = compiled(kernel, arguments, target, THREADS)
    print(f"\n{target:7} {name}: registers {made.registers}, shared {made.shared}")  # noqa: T201
    assert made.spilled == 0
    assert not [name for name in made.code if name.startswith(("LDL", "STL", "scratch_"))]
    assert made.registers <= budget * (2 if target.startswith("gfx") else 1)


def test_kernels_are_jitted_without_specialisation() -> None:
    """A new size, fraction, step or address compiles nothing."""
    for kernel in {variant[0] for variant in VARIANTS.values()}:
        for parameter in kernel.params:
            assert parameter.is_constexpr or parameter.do_not_specialize, parameter.name
