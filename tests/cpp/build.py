"""Compiles every .cu file of csrc/ for the CPU, against emulator.h: docs/design/emulator.md.

    python tests/cpp/build.py [plain|address|thread]      prints the folder of `_C_emulated`

Results are kept under build/, by the hash of all sources.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
FLAGS = {
    "plain": ["-O2"],
    "address": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-O1", "-fsanitize=thread"],
}
COMMON = ["-std=c++20", "-g1", "-fPIC", "-DLOGPI_CUDA_EMULATOR"]
COMMON += ["-DLOGPI_HAS_CUDA", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function"]


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
    sources = [*sorted(CSRC.glob("*/*.cu")), *sorted(CSRC.glob("*/bind_cuda.cpp"))]
    key = hashlib.sha256(repr((FLAGS[variant], COMMON, sys.version)).encode())
    headers = [*CSRC.rglob("*.h"), *CSRC.rglob("*.cuh"), *HERE.rglob("*.h"), HERE / "harness.cpp"]
    for path in sorted([*sources, *headers]):
        key.update(path.read_bytes() if path.exists() else b"")
    out = ROOT / "build" / f"emulator-{variant}-{key.hexdigest()[:16]}"
    if out.exists():
        return out
    out.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:  # whole or not at all
        work = Path(folder) / "out"
        work.mkdir()
        _compile(sources, work, variant)
        try:
            work.rename(out)
        except OSError:  # another process was faster
            if not out.exists():
                raise
    return out


def _compile(sources: list[Path], work: Path, variant: str) -> None:
    import pybind11

    cxx, flags = compiler(), [*COMMON, *FLAGS[variant]]
    include = [f"-I{HERE}", f"-I{CSRC}", "-isystem", str(cuda_include())]
    python = ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_paths()["include"]]
    ops = [path.parent.name for path in sources if path.name == "bind_cuda.cpp"]
    module = work / "module.cpp"
    module.write_text(_module(ops))

    def objects(source: Path) -> Path:
        target = work / f"{source.parent.name}_{source.stem}.o"
        hidden = ["-fvisibility=hidden", *python]  # pybind11 wants it
        language = ["-x", "c++"] if source.suffix == ".cu" else hidden
        _run([cxx, *flags, *include, *language, "-c", str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        built = list(pool.map(objects, [*sources, module]))
    kernels = [path for path, source in zip(built, sources, strict=False) if source.suffix == ".cu"]
    bindings = [path for path in built if path not in kernels]
    # Kernels apart: their library's thread-local storage is `__shared__` memory and nothing else.
    sanitizer = [flag for flag in flags if flag.startswith("-fsanitize")]
    _run([cxx, "-shared", *sanitizer, *map(str, kernels), "-o", str(work / "libkernels.so")])
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    link = [
        f"-L{work}",
        "-lkernels",
        "-Wl,-rpath,$ORIGIN",
        "-o",
        str(work / f"_C_emulated{suffix}"),
    ]
    _run([cxx, "-shared", *sanitizer, *map(str, bindings), *link])
    for path in built:
        path.unlink()


def _module(ops: list[str]) -> str:
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
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    print(build(*sys.argv[1:]))
