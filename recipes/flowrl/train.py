"""FlowRL, at several reward scales, against GRPO: does it keep more ways to a solution?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

_RUNNER = Path(__file__).parents[1] / "entropy" / "train.py"


def arguments(argv: Sequence[str]) -> list[str]:
    """Those of recipes/entropy/train.py, which runs this too; what `argv` says wins."""
    ours = ["--task", "countdown", "--method", "grpo", "flowrl", "--reward-scale", "15", "1"]
    return [*ours, *argv]


def main(argv: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    spec = spec_from_file_location("entropy_train", _RUNNER)
    assert spec is not None
    assert spec.loader is not None
    runner = module_from_spec(spec)
    spec.loader.exec_module(runner)
    results: dict[str, list[dict[str, Any]]] = runner.main(
        arguments(sys.argv[1:] if argv is None else argv)
    )
    return results


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the same command repeats the run at hand and keeps those before")
