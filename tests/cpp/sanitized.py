"""Runs Python with the CUDA kernels emulated under sanitizers: docs/design/emulator.md.

    python tests/cpp/sanitized.py address|thread|initcheck -m pytest tests/ops -k cuda --capture=sys

address: AddressSanitizer and UBSan. thread: ThreadSanitizer. initcheck: shared memory is written
before it is read. Only the kernels are instrumented; a sanitizer's report ends the process, which
is why pytest should leave stderr alone (`--capture=sys`).
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import build

LIBRARIES = {
    "plain": (),
    "address": ("libasan.so", "libubsan.so"),
    "thread": ("libtsan.so",),
    "initcheck": (),
}
ADDR_NO_RANDOMIZE = 0x0040000


def environment(variant: str) -> dict[str, str]:
    """What a process needs to load `_C_emulated` of this variant."""
    common = "halt_on_error=1:print_summary=1"
    return {
        **os.environ,
        "LOGPI_EMULATOR": variant,
        "LD_PRELOAD": " ".join(map(_library, LIBRARIES[variant])),
        # Leaks: Python's and torch's own, at exit. One-definition rule: torch's libraries.
        "ASAN_OPTIONS": f"{common}:detect_leaks=0:detect_odr_violation=0",
        "UBSAN_OPTIONS": f"{common}:print_stacktrace=1",
        # Code that is not instrumented is not looked at: its locks are not seen either.
        "TSAN_OPTIONS": f"{common}:ignore_noninstrumented_modules=1:report_thread_leaks=0",
        "OMP_NUM_THREADS": "1",
    }


def fixed_addresses() -> None:
    """TSan of GCC 12 cannot start where the kernel randomises addresses by more than 28 bits."""
    ctypes.CDLL(None).personality(ADDR_NO_RANDOMIZE)  # where it is refused, TSan may do without


def _library(name: str) -> str:
    command = [build.compiler(), f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_absolute():
        raise build.CannotBuildError(f"the compiler has no {name}")
    return path


if __name__ == "__main__":
    variant, *command = sys.argv[1:]
    if variant not in LIBRARIES:
        sys.exit(f"variant: expected one of {', '.join(LIBRARIES)}, got {variant!r}")
    build.build(variant)  # before the sanitizers are loaded, or the compiler runs under them
    fixed_addresses()
    os.execve(sys.executable, [sys.executable, *command], environment(variant))
