"""`python -m logpi info`: what this installation is and which backend rows can serve here."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import platform
import sys

import torch

import logpi
from logpi import _C, ops
from logpi.core.backends import explain


def info() -> None:
    print(f"logpi   {logpi.__version__}")
    print(f"torch   {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"python  {platform.python_version()}, {platform.system()} {platform.machine()}")
    print(f"cpu     {_C.cpu_isa()}")
    print(f"kernels CPU{' and CUDA' if _C.has_cuda else ', built without CUDA'}")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"gpus    {', '.join(gpus) or 'none'}")
    for module in pkgutil.iter_modules(ops.__path__):
        rows = getattr(importlib.import_module(f"logpi.ops.{module.name}"), "BACKENDS", None)
        if rows is None:  # formulas that ops share
            continue
        print(f"\n{module.name}")
        for row, reason in explain(rows):
            print(f"  {row:8}{'can serve' if reason is None else reason}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m logpi")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, devices and which backend rows can serve here")
    parser.parse_args()
    info()
    return 0


if __name__ == "__main__":
    sys.exit(main())
