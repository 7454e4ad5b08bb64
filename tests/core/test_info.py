"""`python -m logpi info`, the first thing one is asked for, and `python -m logpi objectives`."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

from logpi import objectives, ops


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


def test_objectives_prints_every_objective_from_its_class() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "logpi", "objectives"], capture_output=True, text=True, check=True
    )
    found = [line.partition("(")[0] for line in done.stdout.splitlines() if "(" in line[:12]]
    classes = [getattr(objectives, name) for name in objectives.__all__]
    known = {c.__name__ for c in classes if issubclass(c, objectives.Objective)}
    assert known - {"Objective", "TokenObjective"} <= set(found)
    assert "DualClip(clip_ratio_low=0.2, clip_ratio_high=0.2, clip_ratio_c=3.0)" in done.stdout
    assert "\nDRO(beta)  arXiv" in done.stdout
    section = done.stdout.partition("\nGSPO(")[2].partition("\n\n")[0]
    assert objectives.GSPO.reference_denominator in section
    assert "its whole sequence" in section
