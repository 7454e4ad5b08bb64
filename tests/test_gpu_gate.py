"""benchmarks/gpu_gate.sh: without a GPU it says what it skips, and what fails makes it fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
NO_GPU = "no GPU that torch sees"


def gate(*phases: str, **environment: str) -> tuple[int, dict[str, tuple[str, str]], str]:
    """Exit status, (verdict, remark) by phase as the table at the end has them, all output."""
    done = subprocess.run(
        [ROOT / "benchmarks/gpu_gate.sh", *phases],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    last = done.stdout.rpartition("\nphase ")[2]
    lines = re.findall(r"^(\w+) +(ran|skipped|failed) +\d+ s  (.*)$", last, re.MULTILINE)
    table = {phase: (verdict, remark) for phase, verdict, remark in lines}
    return done.returncode, table, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: run the gate itself")
def test_without_a_gpu_it_runs_to_its_end(tmp_path: Path) -> None:
    status, table, output = gate(OUT=str(tmp_path))
    assert status == 0, output
    assert table.pop("build") == ("ran", f"CPU kernels alone: {NO_GPU}")
    for phase in ("gpu_tests", *SANITIZERS):
        assert table.pop(phase) == ("skipped", NO_GPU)
    assert table.pop("bench")[0] == "ran"
    assert not table
    for op in ("token_log_probs", "linear_log_probs"):
        endings = {path.suffix for path in tmp_path.glob(f"*/{op}.*")}
        assert endings == {".json", ".md", ".png"}
    assert NO_GPU in (tmp_path / "gpu_gate.txt").read_text()
    assert "logpi cpu" in output


def test_a_failing_phase_makes_it_fail() -> None:
    status, table, output = gate("build", "bench", PYTHON="/bin/false")
    assert status == 1, output
    assert table["build"][0] == "failed"
    assert "exit status 1" in table["build"][1]
    assert table["bench"] == ("skipped", "build failed")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: nothing is skipped")
def test_only_skipping_is_no_failure() -> None:
    status, table, output = gate("memcheck", "synccheck")
    assert status == 0, output
    assert table == dict.fromkeys(("memcheck", "synccheck"), ("skipped", NO_GPU))


def _pretend(tmp_path: Path, name: str, script: str) -> None:
    (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / name).chmod(0o755)


@pytest.mark.parametrize(
    ("sanitizer", "status", "verdict", "remark"),
    [
        ("echo all quiet", 0, "ran", "all quiet"),
        ("echo a hazard; exit 9", 1, "failed", "exit status 9"),
        ("echo Device not supported; exit 1", 0, "skipped", "device not supported"),
        ('echo "$@"', 0, "ran", "--tool racecheck --error-exitcode 9"),
    ],
)
def test_what_a_sanitizer_finds(
    tmp_path: Path, sanitizer: str, status: int, verdict: str, remark: str
) -> None:
    _pretend(tmp_path, "compute-sanitizer", sanitizer)
    _pretend(tmp_path, "python", "echo 90")  # whatever it is asked: the GPU's capability
    path = f"{tmp_path}:{os.environ['PATH']}"
    found, table, output = gate("racecheck", PYTHON=str(tmp_path / "python"), PATH=path)
    assert found == status, output
    assert table["racecheck"][0] == verdict
    assert remark in table["racecheck"][1]


def test_an_unknown_phase_is_refused() -> None:
    status, _, output = gate("bild")
    assert status == 2
    assert "bild: expected a phase of build gpu_tests" in " ".join(output.split())


def test_what_is_marked_gpu_lies_where_the_gate_looks() -> None:
    marked = {
        path.relative_to(ROOT).parts[1]
        for path in (ROOT / "tests").rglob("*.py")
        if path != Path(__file__) and "mark.gpu" in path.read_text()
    }
    assert marked == {"gpu"}
