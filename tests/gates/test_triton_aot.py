"""The Triton kernels of every op compiled for GPUs that are not here: wide loads, no spills."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter and the compiler do not share a process", allow_module_level=True)

from aot import TARGETS, Compiled, compiled

from logpi.ops.linear_log_probs import _triton_kernels as tile
from logpi.ops.linear_log_probs._triton import SMALLER
from logpi.ops.token_log_probs import _triton_backward as backward
from logpi.ops.token_log_probs import _triton_kernels as forward
from logpi.ops.token_log_probs._triton import TILES

DTYPES = ("bf16", "fp16", "fp32")
# What a launch on contiguous logits [N, 151936] passes; every argument not named here is float32*.
COMMON = {
    "token_ids": "*i64",
    "loss_mask": "*i1",
    "keep_indptr": None,
    "keep_indices": None,
    "temperatures": None,
    "collision": None,
    "lse": None,
    "top1": None,
    "mean_logit": None,
    "partial": None,
    "state": "*fp64",
    "targets": "*fp64",
    "BLOCK": TILES.block,
    "IDS": 1,
    "DIMS": 1,
    "GRAD_DIMS": 1,
    "ALIGNED": True,
    "GRAD_ALIGNED": True,
    "WHOLE": True,
    "CAP": False,
    "COLLISION": False,
    "MEAN_LOGIT": False,
    "TOP1": False,
}
KEEP = {"keep_indptr": "*i64", "keep_indices": "*i32", "WHOLE": False}
EVERYTHING = {
    "temperatures": "*fp32",
    "collision": "*fp32",
    "lse": "*fp32",
    "top1": "*i1",
    "mean_logit": "*fp32",
    "CAP": True,
    "DIMS": 4,
    "IDS": 8,
    "COLLISION": True,
    "MEAN_LOGIT": True,
    "TOP1": True,
}
FOLD = {"BLOCK": TILES.block // SMALLER}
# name: kernel, arguments, most registers (65536 / 256 threads / programs a multiprocessor)
VARIANTS: dict[str, tuple[Any, dict[str, Any], int]] = {
    "forward": (forward.forward_kernel, {}, 128),
    "backward": (backward.backward_kernel, {}, 64),
    "forward, log-probs alone": (forward.forward_kernel, {"entropy": None, "stats": None}, 128),
    "forward, few rows": (forward.forward_kernel, {"partial": "*fp64"}, 128),
    "forward, everything": (forward.forward_kernel, EVERYTHING, 255),
    "forward, kept ids": (forward.forward_kernel, KEEP, 255),
    "combine": (forward.combine_kernel, {"partial": "*fp64"}, 64),
    "backward, softcap": (backward.backward_kernel, {"CAP": True}, 80),
    "backward, kept ids": (backward.kept_backward_kernel, KEEP, 255),
    "scatter": (backward.scatter_kernel, KEEP, 64),
    "fold": (tile.fold_kernel, FOLD, 128),
    "fold, softcap": (tile.fold_kernel, FOLD | {"CAP": True}, 128),
    "fold, everything": (tile.fold_kernel, EVERYTHING | FOLD, 255),
}
THREADS = {"combine": 1} | {
    name: TILES.threads // SMALLER for name in VARIANTS if name.startswith("fold")
}
EVERY_DTYPE = ("forward", "backward", "fold")
CASES = [
    (name, dtype, target)
    for name in VARIANTS
    for dtype in (DTYPES if name in EVERY_DTYPE else ("bf16",))
    for target in TARGETS
]


def build(name: str, dtype: str, target: str) -> Compiled:
    kernel, changes, _ = VARIANTS[name]
    known = COMMON | {"logits": f"*{dtype}", "grad": f"*{dtype}"} | changes
    arguments = {p.name: known.get(p.name, p.annotation_type or "*fp32") for p in kernel.params}
    return compiled(kernel, arguments, target, THREADS.get(name, TILES.threads))


def wide(made: Compiled, what: str) -> int:
    """16-byte loads or stores."""
    names = ("LDG.E.128", "global_load_dwordx4", "buffer_load_dwordx4")
    if what == "store":
        names = ("STG.E.128", "global_store_dwordx4", "buffer_store_dwordx4")
    return sum(count for name, count in made.code.items() if name.startswith(names))


@pytest.mark.parametrize(("name", "dtype", "target"), CASES)
def test_what_the_compiler_makes(name: str, dtype: str, target: str, record_property) -> None:
    made = build(name, dtype, target)
    facts = {
        "registers": made.registers,
        "shared": made.shared,
        "instructions": sum(made.code.values()),
        "16-byte loads": wide(made, "load"),
        "16-byte stores": wide(made, "store"),
    }
    print(f"\n{target:7} {dtype} {name}: " + ", ".join(f"{n} {v}" for n, v in facts.items()))  # noqa: T201
    for fact, value in facts.items():
        record_property(fact, value)
    assert made.spilled == 0
    assert not [name for name in made.code if name.startswith(("LDL", "STL", "scratch_"))]
    budget = VARIANTS[name][2] * (2 if target.startswith("gfx") else 1)  # which has 512 a lane
    assert made.registers <= budget
    if "kept" not in name and name not in ("combine", "scatter"):
        vectors = 8 if dtype == "fp32" else 4
        assert facts["16-byte loads"] >= vectors
        if name.startswith("backward"):
            assert facts["16-byte stores"] >= vectors


def test_unaligned_rows_have_no_wide_loads() -> None:
    """The gate above can fail."""
    kernel, _, _ = VARIANTS["forward"]
    known = COMMON | {"logits": "*bf16", "ALIGNED": False}
    arguments = {p.name: known.get(p.name, p.annotation_type or "*fp32") for p in kernel.params}
    assert wide(compiled(kernel, arguments, "sm_90", TILES.threads), "load") == 0


@pytest.mark.parametrize("name", ["fold", "fold, everything"])
def test_state_is_read_before_the_barriers_and_written_behind_them(name: str) -> None:
    """One thread overwrites what all threads read."""
    code = build(name, "bf16", "sm_90").assembly
    reads, barriers, writes = (
        [found.start() for found in re.finditer(pattern, code)]
        for pattern in (r"\bLDG\.E\.64\b", r"\bBAR\.SYNC", r"\bSTG\.E")
    )
    fields = 3 if name == "fold" else 6
    assert sum(at < barriers[0] for at in reads) >= fields
    assert barriers[-1] < writes[0]
