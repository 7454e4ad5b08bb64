"""`python -m logpi info`: what this installation is and which backend rows can serve here.
`python -m logpi objectives`: what every objective is, from the classes themselves."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import pkgutil
import platform
import sys
from typing import Any

import torch

import logpi
from logpi import _C, ops
from logpi import objectives as catalogue
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


def objectives() -> None:
    print("gradient = stabilization mask * (1 / reference denominator) * advantage * likelihood")
    print("gradient (arXiv:2509.04419); r = π / π_old, p = π, s = a sequence's ratio")
    for name in catalogue.__all__:
        found = getattr(catalogue, name)
        if issubclass(found, catalogue.Objective) and dataclasses.is_dataclass(found):
            _print_objective(found)


def _print_objective(objective: Any) -> None:
    knobs = ", ".join(map(_knob, dataclasses.fields(objective)))
    print(f"\n{objective.__name__}({knobs})  {objective.paper}".rstrip())
    print(f"  loss         {(objective.__doc__ or '').partition(chr(10))[0]}")
    print(f"  mask         {objective.stabilization_mask}")
    print(f"  denominator  {objective.reference_denominator}")
    print(f"  advantage    {objective.advantage}")
    print(f"  likelihood   {objective.likelihood_gradient}")
    if not objective.token_level:
        print(f"  a token's gradient depends on {objective.depends_on}")


def _knob(field: dataclasses.Field[object]) -> str:
    required = field.default is dataclasses.MISSING
    return field.name if required else f"{field.name}={field.default!r}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m logpi")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, devices and which backend rows can serve here")
    commands.add_parser("objectives", help="the objectives of policy_loss and their four parts")
    {"info": info, "objectives": objectives}[parser.parse_args().command]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
