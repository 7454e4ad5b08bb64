"""Compiles CUDA sources for the CPU, against emulator.h: docs/design/emulator.md.

    python tests/cpp/build.py [plain|address|thread|initcheck]       prints where `_C_emulated` is

Results are kept under build/, by the hash of all that goes into them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"

# alignment, bounds: machine.cpp answers them itself, so they need no runtime and are always on.
KERNEL_FLAGS = {
    "plain": ["-O2", "-fsanitize=alignment,bounds"],
    "address": ["-O1", "-fsanitize=address,undefined"],
    "thread": ["-O1", "-fsanitize=thread,alignment,bounds"],
    "initcheck": ["-O1", "-fsanitize=thread,alignment,bounds"],  # TSan's calls, not TSan
}
RUNTIME = {  # what machine.cpp is told, and what is linked
    "plain": ([], []),
    "address": (["-DEMULATOR_ADDRESS"], ["-fsanitize=address,undefined"]),
    "thread": (["-DEMULATOR_THREAD"], ["-fsanitize=thread"]),
    "initcheck": (["-DEMULATOR_INITCHECK"], []),
}
COMMON = ["-std=c++17", "-g1", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function"]
COMMON += [f"-ffile-prefix-map={ROOT}/=", "-DLOGPI_CUDA_EMULATOR", "-DLOGPI_HAS_CUDA"]
COMMON += ["-fno-gnu-unique"]  # or two emulated libraries in one process would share a machine


class CannotBuildError(RuntimeError):
    """The sentence says what is missing."""


def cuda_include() -> Path:
    """The toolkit's headers: their host parts give the types and conversions."""
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
    candidates = [Path(os.environ["CUDA_HOME"])] if "CUDA_HOME" in os.environ else []
    candidates += [Path(nvcc).resolve().parents[1]] if nvcc else []
    candidates += [Path("/usr/local/cuda")]
    for home in candidates:
        if (home / "include" / "cuda_bf16.h").exists():
            return home / "include"
    raise CannotBuildError("the emulator needs the CUDA toolkit's headers, and none were found")


def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        raise CannotBuildError("the emulator needs g++, and none was found")
    return found


def build(variant: str = "plain") -> Path:
    """The folder that holds `_C_emulated` (and `libkernels.so`, which it loads)."""
    kernels = sorted(CSRC.glob("*/*.cu"))
    bindings = sorted(CSRC.glob("*/bind_cuda.cpp"))

    def make(work: Path) -> None:
        import pybind11

        module = work / "module.cpp"
        module.write_text(_module([path.parent.name for path in bindings]))
        python = ["-isystem", pybind11.get_include()]
        python += ["-isystem", sysconfig.get_paths()["include"], "-fvisibility=hidden", "-O1"]
        jobs = [*_kernel_jobs(kernels, variant), *((path, python) for path in (*bindings, module))]
        objects = _compile(jobs, work)
        # Kernels apart: their library's thread-local storage is `__shared__` memory and nothing
        # else, and the bindings need no sanitizer.
        count = len(objects) - len(bindings) - 1
        _link(objects[:count], work / "libkernels.so", variant, "-shared", "-Wl,--no-undefined")
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        kernels_here = [f"-L{work}", "-lkernels", "-Wl,-rpath,$ORIGIN"]
        _link(objects[count:], work / f"_C_emulated{suffix}", "plain", "-shared", *kernels_here)

    return _kept(f"emulator-{variant}", variant, [*kernels, *bindings, *_headers(CSRC)], make)


def build_planted(variant: str = "plain") -> Path:
    """The program that runs one kernel of kernels/: `planted <case>`."""
    folder = HERE / "kernels"
    kernels = sorted(folder.glob("*.cu"))

    def make(work: Path) -> None:
        jobs = [*_kernel_jobs(kernels, variant), (folder / "main.cpp", ["-O1"])]
        _link(_compile(jobs, work), work / "planted", variant)

    inputs = [*kernels, folder / "main.cpp", *_headers(folder), CSRC / "core" / "launch.cuh"]
    return _kept(f"planted-{variant}", variant, inputs, make) / "planted"


Job = tuple[Path, Sequence[str]]  # a source and its own flags


def _kernel_jobs(kernels: Sequence[Path], variant: str) -> list[Job]:
    """Instrumented kernels, and the machine, which must not be."""
    flags = ["-x", "c++", *KERNEL_FLAGS[variant], "-fno-sanitize-recover=all"]
    machine = HERE / "emulator"
    own = [machine / "machine.cpp"] + [machine / "initcheck.cpp"] * (variant == "initcheck")
    own_flags = ["-O2", *RUNTIME[variant][0]]
    return [*((path, flags) for path in kernels), *((path, own_flags) for path in own)]


def _headers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in (".h", ".cuh")]


def _kept(name: str, variant: str, inputs: Sequence[Path], make: Callable[[Path], None]) -> Path:
    """The folder that `make` fills, made once for these inputs."""
    machine = [*_headers(HERE / "emulator"), *(HERE / "emulator").glob("*.cpp")]
    inputs = sorted([*inputs, *machine, HERE / "emulator.h", Path(__file__)])
    key = hashlib.sha256(repr((variant, compiler(), cuda_include(), sys.version)).encode())
    for path in inputs:
        key.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    out = ROOT / "build" / f"{name}-{key.hexdigest()[:16]}"
    if out.exists():
        return out
    out.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:  # whole or not at all
        work = Path(folder) / "out"
        work.mkdir()
        make(work)
        try:
            work.rename(out)
        except OSError:  # another process was faster
            if not out.exists():
                raise
    return out


def _compile(jobs: Sequence[Job], work: Path) -> list[Path]:
    include = [f"-I{HERE.relative_to(ROOT)}", f"-I{CSRC.relative_to(ROOT)}"]
    include += ["-isystem", str(cuda_include())]

    def one(job: Job) -> Path:
        source, flags = job
        target = work.parent / f"{source.parent.name}_{source.stem}.o"
        here = source.relative_to(ROOT)  # and not the whole path, which a report would repeat
        _run([compiler(), *COMMON, *include, *flags, "-c", str(here), "-o", str(target)])
        return target

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(one, jobs))


def _link(objects: Sequence[Path], target: Path, variant: str, *flags: str) -> None:
    inputs = [str(path) for path in objects]
    _run([compiler(), *inputs, *flags, *RUNTIME[variant][1], "-o", str(target)])


def _module(ops: Sequence[str]) -> str:
    declared = "\n".join(f"void bind_{op}_cuda(pybind11::module_& m);" for op in ops)
    called = "\n".join(f"  logpi::bind_{op}_cuda(m);" for op in ops)
    return f"""#include <pybind11/pybind11.h>

#include "core/check.h"

namespace logpi {{
{declared}
}}

PYBIND11_MODULE(_C_emulated, m) {{
  pybind11::register_local_exception_translator([](std::exception_ptr error) {{
    try {{
      if (error) std::rethrow_exception(error);
    }} catch (const logpi::ValueError& e) {{
      PyErr_SetString(PyExc_ValueError, e.what());
    }}
  }});
{called}
}}
"""


def _run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    print(build(*sys.argv[1:]))
