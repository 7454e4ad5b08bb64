"""Triton kernels compiled ahead of time, as a launch on a GPU that is not here would have them."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as triton_compile

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class Compiled(NamedTuple):
    registers: int
    shared: int
    spilled: int  # bytes of local memory
    code: Counter[str]  # instructions by name
    assembly: str


def compiled(
    kernel: Any, arguments: dict[str, Any], target: str, threads: int, **options: Any
) -> Compiled:
    """`arguments`: a type for a parameter, None for one that is absent, a value for a constexpr."""
    signature, constants = {}, {}
    for parameter in kernel.params:
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        else:
            signature[parameter.name] = value
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs={})
    options |= {"num_warps": threads // TARGETS[target].warp_size or 1}
    made = triton_compile(source, target=TARGETS[target], options=options)
    if target.startswith("sm"):
        usage = _cuobjdump("-res-usage", made.asm["cubin"])
        found = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", usage)}
        sass = _cuobjdump("-sass", made.asm["cubin"])
        names = re.findall(
            r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)", sass, re.MULTILINE
        )
        local = found["STACK"] + found["LOCAL"]
        return Compiled(found["REG"], made.metadata.shared, local, Counter(names), sass)
    gcn = made.asm["amdgcn"]
    found = {
        name: int(value) for name, value in re.findall(r"^\s+\.(\w+):\s+(\d+)$", gcn, re.MULTILINE)
    }
    local = found["vgpr_spill_count"] + found["private_segment_fixed_size"]
    names = re.findall(r"^\s+([a-z]+_[a-z0-9_]+)", gcn, re.MULTILINE)
    return Compiled(found["vgpr_count"], made.metadata.shared, local, Counter(names), gcn)


def _cuobjdump(option: str, cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
