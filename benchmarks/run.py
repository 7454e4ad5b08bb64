"""Measures an op beside its peers: `python benchmarks/run.py token_log_probs`.

The op's tests run first; if they are red, no number is printed.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib
import importlib.metadata
import math
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's own folder is first

import torch

from benchmarks import report
from benchmarks.devices import OtherLoad, device_of, gpu_state, huge_pages, slug
from benchmarks.harness import Provider, alternate, rows
from benchmarks.ops._logits import CHECKED_ROWS
from benchmarks.shapes import MEMORY, named

ROOT = Path(__file__).resolve().parents[1]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PACKAGES = ("logpi", "torch", "triton", "trl", "liger_kernel", "quack-kernels", "flash-attn",
            "cut-cross-entropy")  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    kind = torch.device(args.device).type
    module = _module(args.op)
    usual = module.QUICK[kind] if args.quick else [shape.name for shape in module.SHAPES[kind]]
    shapes = [named(name, module.SHAPES) for name in args.shapes or usual]
    dtypes = args.dtype or list(getattr(module, "DTYPES", ("float32", "bfloat16")))
    run_tests = not (args.no_tests or args.tests_were_green)
    if run_tests and not green(args.op, ROOT, kind):
        print(f"the tests of {args.op} are red: nothing was measured", file=sys.stderr)
        return 1
    budget = 1.0 if args.quick else args.budget
    result = measure(args.op, shapes, dtypes, args.device, budget, args.seconds)
    result["tests"] = "not run" if args.no_tests else "green"
    report.show(result)
    whole = not (args.shapes or args.quick or args.dtype or args.no_tests or result["left_out"])
    # a partial run is for reading: only a whole one may replace the results that are kept
    out = args.out or (ROOT / "benchmarks/results" if whole else ROOT / "build/benchmarks")
    for path in report.write(result, out / result["slug"]):
        print(path)
    return 0


def green(op: str, root: Path, kind: str = "cpu") -> bool:
    """Runs the op's tests on that kind of device in a process of their own; none found is red."""
    folder, marked = ("gpu", "gpu") if kind == "cuda" else ("ops", "not gpu")
    files = sorted((root / "tests" / folder).glob(f"test_{op}*.py"))
    if not files:
        return False
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", marked, *map(str, files)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.stderr.write((done.stdout + done.stderr)[-4000:])
    return done.returncode == 0


def measure(
    op: str,
    shapes: list[Any],
    dtypes: list[str],
    device: str,
    budget_s: float,
    seconds: float = math.inf,
) -> dict[str, Any]:
    """Every case of `op`, as the JSON holds it; after `seconds` no further one is begun."""
    module = _module(op)
    found: list[dict[str, Any]] = []
    left_out: list[str] = []
    chosen, load, gpu, began = None, OtherLoad(), gpu_state(), time.monotonic()
    for shape in shapes:
        for dtype in dtypes:
            if chosen is not None and time.monotonic() - began > seconds:
                left_out.append(f"{shape.name} {dtype}")
                continue
            if "torch._dynamo" in sys.modules:
                torch._dynamo.reset()  # past 8 shapes dynamo would quietly run eager code
            case = module.Case(shape, DTYPES[dtype], device)
            chosen = chosen or device_of(torch.empty(0, device=device))
            group = records = None  # an op may leave a case out
            for group in module.groups(case):
                what = f"{shape.name} {dtype} {group.name} {group.buffers} {group.caches}"
                started = time.monotonic()
                print(f"measuring {what} … ", end="", file=sys.stderr, flush=True)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of the peers; our own tests run under errors
                    records = alternate(
                        group.providers,
                        chosen,
                        budget_s=budget_s,
                        expected_peak=_expected(found, dtype, group, case.nbytes),
                        error_of=case.error,
                    )
                print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
                labels = {"shape": str(shape), "model": shape.name, "dtype": dtype}
                labels |= {"group": group.name, "buffers": group.buffers}
                labels |= {"caches": group.caches}
                found += rows(records, case.nbytes, case.moved, **labels)
            del case, group, records
            gc.collect()  # before the next one is allocated
            chosen.release()
    return {
        "op": op,
        "slug": slug(chosen),
        **_environment(chosen),
        "gpu_state": [gpu, gpu_state()],
        "other_load": load.share(),
        "left_out": left_out,
        "checked": CHECKED_ROWS,
        "acceptance": [
            check for target in module.TARGETS[chosen.kind] for check in target.check(found)
        ],
        "rows": found,
    }


def _module(op: str) -> Any:
    """The op's benchmark: `Case`, `groups`, `TARGETS`, the `SHAPES` and `QUICK` it takes, and
    `DTYPES` where they are not float32 and bfloat16."""
    return importlib.import_module(f"benchmarks.ops.{op}")


def _expected(
    found: list[dict[str, Any]], dtype: str, group: Any, nbytes: int
) -> Callable[[Provider], float]:
    """Peak memory, guessed from the same provider at a smaller shape of the same run."""
    group_key = (dtype, group.name, group.buffers)

    def expected(provider: Provider) -> float:
        factors = [
            row["peak_bytes"] / row["input_bytes"]
            for row in found
            if row["peak_bytes"] and row["provider"] == provider.name
            # whose logits are many times the inputs: it once cost a peer its place in the table
            and not row["model"].startswith(MEMORY)
            and (row["dtype"], row["group"], row["buffers"]) == group_key
        ]  # fmt: skip
        return factors[-1] * nbytes if factors else 0.0

    return expected


def _environment(device: Any) -> dict[str, Any]:
    try:
        from logpi import _C

        isa = _C.cpu_isa()
    except ImportError:
        isa = "none: _C is not built"
    status = _git("status", "--porcelain")
    return {
        "device": device.name,
        "threads": torch.get_num_threads(),
        "isa": isa,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "dirty": bool(status),
        "versions": {name: _version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "memory": huge_pages(),
        "memory_method": device.memory_method,
    }


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        module = sys.modules.get(package)
        return getattr(module, "__version__", "not installed")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    ops = sorted(p.stem for p in (Path(__file__).parent / "ops").glob("[a-z]*.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("op", choices=ops)
    parser.add_argument("--shapes", nargs="+", help="names from shapes.py, or ROWSx[HIDDENx]VOCAB")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="small shapes, under a minute")
    parser.add_argument(
        "--budget", type=float, default=4.0, help="seconds a group, slow peers aside"
    )
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="begin no shape after so many"
    )
    parser.add_argument("--out", type=Path, help="folder in which a folder of the device is made")
    tests = parser.add_mutually_exclusive_group()
    tests.add_argument("--no-tests", action="store_true", help="measure whatever state it is in")
    tests.add_argument("--tests-were-green", action="store_true", help="the caller just ran them")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
