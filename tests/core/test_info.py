"""`python -m logpi info`, the first thing one is asked for."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

from logpi import ops


def test_info_names_every_op_and_its_rows() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "logpi", "info"], capture_output=True, text=True, check=True
    )
    with_a_table = [
        module.name
        for module in pkgutil.iter_modules(ops.__path__)
        if (Path(ops.__path__[0]) / module.name / "op.py").exists()
    ]
    assert len(with_a_table) >= 3
    for op in with_a_table:
        section = done.stdout.partition(f"\n{op}\n")[2].partition("\n\n")[0]
        assert "cpu     can serve" in section, op
