"""Programs a second through the sandbox, beside a fresh interpreter for each.

    python benchmarks/rewards_code.py [--programs 300]

Wall clock and CPU time of all processes, the best of three rounds, the two ways in turn.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable

from logpi.rewards.code import Job, Sandbox

PROGRAM = "def f(x):\n    return 2 * x\n"
TESTS = ["assert f(2) == 4", "assert f(0) == 0", "assert f(1000) == 2000"]


def fresh_interpreters(number: int) -> None:
    """What the usual harness does, without its guards: program and asserts in one `python -c`."""
    text = "\n".join([PROGRAM, *TESTS])
    for _ in range(number):
        subprocess.run([sys.executable, "-I", "-S", "-c", text], check=True)


def sandboxed(sandbox: Sandbox, number: int) -> None:
    runs = sandbox.run_all([Job(PROGRAM, TESTS)] * number)
    assert all(run.passed for run in runs)


def seconds(work: Callable[[int], None], number: int) -> tuple[float, float]:
    """Wall and CPU seconds a program; the CPU's are the machine's busy ones, if it is quiet."""
    start, busy = time.perf_counter(), _busy()
    work(number)
    return (time.perf_counter() - start) / number, (_busy() - busy) / number


def _busy() -> float:
    with open("/proc/stat") as file:  # noqa: PTH123
        user, nice, system = file.readline().split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--programs", type=int, default=300)
    number = parser.parse_args().programs
    with Sandbox(strict=False) as sandbox:
        ways: dict[str, Callable[[int], None]] = {
            "sandbox": lambda n: sandboxed(sandbox, n),
            "a fresh interpreter each, no guard": fresh_interpreters,
        }
        best = {name: (float("inf"), float("inf")) for name in ways}
        for _ in range(3):
            for name, work in ways.items():
                best[name] = min(best[name], seconds(work, number))
        print(f"{platform.machine()}, {sandbox.workers} CPUs, not enforced: {sandbox.not_enforced}")
    for name, (wall, cpu) in best.items():
        print(f"{name}: {1 / wall:.0f} programs a second, {1e3 * cpu:.1f} ms of CPU a program")


if __name__ == "__main__":
    main()
