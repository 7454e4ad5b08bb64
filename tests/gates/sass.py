"""What nvcc made of the CUDA sources: registers, shared memory, instructions, occupancy.

No GPU is needed: nvcc compiles a .cu to a cubin for one architecture, cuobjdump and nvdisasm
(PyPI packages of the dev extra, or a CUDA toolkit) take it apart again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build/gates"
ARCHS = ("sm_80", "sm_90")
FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "-DLOGPI_HAS_CUDA", f"-I{ROOT / 'csrc'}")  # CMake's
WARP = 32
RESERVED_SHARED = 1024  # bytes the system takes of every block's shared memory
WHOLE_SHARED = -1  # a kernel that asks at run time for all that a block may have


# ---- tools --------------------------------------------------------------------------------------


@cache
def _tool(name: str) -> str | None:
    """The newest toolkit's on PATH, or the PyPI package's."""
    found = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    package = importlib.util.find_spec("nvidia")
    for folder in (package.submodule_search_locations or []) if package else []:
        found = found or next(map(str, Path(folder).glob(f"*/bin/{name}")), None)
    return found


def missing_tools() -> str | None:
    """Why this machine cannot take kernels apart, or None."""
    missing = [name for name in ("nvcc", "cuobjdump", "nvdisasm", "c++filt") if not _tool(name)]
    return f"needs {', '.join(missing)}: not on PATH, not installed by pip" if missing else None


def _run(*command: str | Path) -> str:
    # cuobjdump looks for nvdisasm on PATH
    path = f"{Path(_tool('nvdisasm') or '').parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


# ---- from sources to kernels --------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """One compiled instance of a kernel; registers a thread, bytes a block."""

    name: str  # without namespaces and template arguments
    instance: str  # with the latter
    arch: str
    registers: int
    stack: int
    local: int
    static_shared: int
    threads: int  # of __launch_bounds__; 0: none given
    instructions: Counter[str]  # by full opcode: "LDG.E.128"

    def count(self, *prefixes: str, having: str = "") -> int:
        """Instructions whose opcode is one of `prefixes` and has the modifier `having`."""
        return sum(
            times
            for opcode, times in self.instructions.items()
            if opcode.split(".")[0] in prefixes and having in ["", *opcode.split(".")]
        )


def compile_all(sources: Iterable[Path], archs: Iterable[str] = ARCHS) -> list[Kernel]:
    """The kernels of every source for every architecture."""
    jobs = [(source, arch) for source in sources for arch in archs]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda job: kernels(cubin(*job), job[1]), jobs)
        return [kernel for part in found for kernel in part]


def cubin(source: Path, arch: str) -> Path:
    """`source` compiled for `arch`; kept in build/ until it, or any file of csrc/, changes."""
    parts = [source, *sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file())]
    digest = hashlib.sha256(" ".join((_run(_tool("nvcc"), "--version"), *FLAGS)).encode())
    for part in parts:
        digest.update(part.read_bytes())
    name = f"{source.parent.name}-{source.stem}-{arch}"
    path = BUILD / f"{name}-{digest.hexdigest()[:16]}.cubin"
    if not path.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        for old in BUILD.glob(f"{name}-*.cubin"):
            old.unlink()
        target = f"arch=compute_{arch[3:]},code={arch}"
        _run(_tool("nvcc"), "-cubin", *FLAGS, "-gencode", target, source, "-o", f"{path}.part")
        Path(f"{path}.part").rename(path)
    return path


def kernels(path: Path, arch: str) -> list[Kernel]:
    """What lies in a cubin."""
    tool = _tool("cuobjdump")
    resources = {
        symbol: {key: int(value) for key, value in re.findall(r"(\w+)(?:\[0\])?:(\d+)", numbers)}
        for symbol, numbers in re.findall(
            r"Function (\w+):\n\s+(REG:.*)", _run(tool, "--dump-resource-usage", path)
        )
    }
    if not resources:
        return []
    opcode = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
    listings = re.split(r"\n\s*Function : (\w+)\n", _run(tool, "--dump-sass", path))[1:]
    sass = dict(zip(listings[::2], listings[1::2], strict=True))
    info = re.split(r"\n\.nv\.info\.(\w+)\n", _run(tool, "--dump-elf", path))[1:]
    bounds = dict(zip(info[::2], info[1::2], strict=True))
    symbols = list(resources)
    readable = _run(_tool("c++filt"), *symbols).splitlines()
    return [
        Kernel(
            *_names(full),
            arch,
            resources[symbol]["REG"],
            resources[symbol]["STACK"],
            resources[symbol]["LOCAL"],
            _static_shared(resources[symbol]["SHARED"], arch),
            _max_threads(bounds.get(symbol, "")),
            Counter(opcode.findall(sass[symbol])),
        )
        for symbol, full in zip(symbols, readable, strict=True)
    ]


def _names(demangled: str) -> tuple[str, str]:
    short = re.sub(r"\(anonymous namespace\)::|logpi::|^void ", "", demangled)
    short = re.sub(r"\((\w+)\)(\d+)", r"\1 \2", short)  # (Sums)1, an enum as template argument
    instance = short[: short.index(">(") + 1] if ">(" in short else short.split("(")[0]
    return instance.split("<")[0], instance


def _static_shared(bytes_: int, arch: str) -> int:
    counts_reserved = int(arch[3:]) >= 90 and bytes_ >= RESERVED_SHARED
    return bytes_ - RESERVED_SHARED if counts_reserved else bytes_


def _max_threads(info: str) -> int:
    found = re.search(r"EIATTR_MAX_THREADS\n.*\n\s*Value:\s+0x(\w+) 0x(\w+) 0x(\w+)", info)
    x, y, z = (int(size, 16) for size in found.groups()) if found else (0, 0, 0)
    return x * y * z


# ---- what must hold -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Expect:
    """What a kernel must keep to.

    Attributes:
        registers: the most a thread may use.
        wide_loads: whether it reads rows of logits, which takes 16 bytes a load.
        dynamic_shared: bytes a block asks for at run time, or WHOLE_SHARED.
    """

    registers: int
    wide_loads: bool = True
    dynamic_shared: int = 0


def line_of(kernel: Kernel, expected: dict[str, Expect]) -> str:
    """The first pattern that the kernel's instance fits: "rows<*, true>"."""
    return next((one for one in expected if fnmatchcase(kernel.instance, one)), "")


def faults(kernel: Kernel, expect: Expect) -> list[str]:
    """Each breach as a sentence."""
    spilled = kernel.count("LDL", "STL")
    found = {
        f"{spilled} loads and stores of local memory": spilled > 0,
        f"{kernel.stack} bytes of stack": kernel.stack > 0,
        f"{kernel.local} bytes of local memory": kernel.local > 0,
        f"{kernel.registers} registers, over its {expect.registers}": kernel.registers
        > expect.registers,
        "no 16-byte load of global memory": expect.wide_loads
        and not kernel.count("LDG", having="128"),
        "no __launch_bounds__": not kernel.threads,
    }
    return [f"{kernel.instance}, {kernel.arch}: {what}" for what, holds in found.items() if holds]


# ---- occupancy and the table --------------------------------------------------------------------

# 32-bit registers, bytes of shared memory, warps and blocks of a multiprocessor
LIMITS = {"sm_80": (65536, 164 << 10, 64, 32), "sm_90": (65536, 228 << 10, 64, 32)}


def resident_warps(kernel: Kernel, dynamic_shared: int = 0) -> int:
    """How many warps of a kernel fit on one multiprocessor."""
    registers, shared, most_warps, most_blocks = LIMITS[kernel.arch]
    warps = -(-kernel.threads // WARP)
    if dynamic_shared == WHOLE_SHARED:
        return warps
    of_a_warp = -(-kernel.registers * WARP // 256) * 256  # given out by 256
    by_registers = registers // of_a_warp // 4 * 4 // warps  # four schedulers share them
    of_a_block = kernel.static_shared + dynamic_shared + RESERVED_SHARED
    by_shared = shared // (-(-of_a_block // 128) * 128)
    return min(by_registers, by_shared, most_warps // warps, most_blocks) * warps


def table(found: Iterable[Kernel], expected: dict[str, Expect]) -> str:
    """Markdown: a line an instance."""
    columns = (
        "kernel", "target", "registers", "static shared", "threads", "warps / SM", "instructions",
        "LDG (16 B)", "STG (16 B)", "MUFU", "FFMA FADD FMUL", "double",
    )  # fmt: skip
    lines = [columns, ["---"] * 2 + ["---:"] * (len(columns) - 2)]
    for kernel in sorted(found, key=lambda kernel: (kernel.name, kernel.instance, kernel.arch)):
        expect = expected[line_of(kernel, expected)]
        lines.append((
            f"`{kernel.instance}`",
            kernel.arch,
            f"{kernel.registers} (of {expect.registers})",
            f"{kernel.static_shared}",
            f"{kernel.threads}",
            f"{resident_warps(kernel, expect.dynamic_shared)} / {LIMITS[kernel.arch][2]}",
            f"{kernel.instructions.total()}",
            f"{kernel.count('LDG')} ({kernel.count('LDG', having='128')})",
            f"{kernel.count('STG')} ({kernel.count('STG', having='128')})",
            f"{kernel.count('MUFU')}",
            " ".join(f"{kernel.count(opcode)}" for opcode in ("FFMA", "FADD", "FMUL")),
            f"{kernel.count('DFMA', 'DADD', 'DMUL')}",
        ))  # fmt: skip
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def carried_code(module: Path) -> set[str]:
    """What a built module holds: {"sm_80", …} and {"compute_120", …} for its PTX."""
    tool = _tool("cuobjdump")
    listed = _run(tool, "--list-elf", module) + _run(tool, "--list-ptx", module)
    found = re.findall(r"\.(sm_\d+\w*)\.(cubin|ptx)", listed)
    return {arch if kind == "cubin" else f"compute_{arch[3:]}" for arch, kind in found}
