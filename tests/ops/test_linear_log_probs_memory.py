"""What forward and backward take beyond inputs and gradients: the promise of the docs page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from logpi.ops.linear_log_probs._plan import WORKSPACE

pytestmark = pytest.mark.slow
HIDDEN, VOCAB = 256, 32064
LIBRARIES = 2 << 20  # what torch's products take of their own, once their kernels are made
# A process of its own for each size: pages that another test has freed would be seen by nobody.
CHILD = f"""
import json, sys, torch
from benchmarks.devices import Cpu
from logpi import linear_log_probs

cpu, rows, retain = Cpu(), int(sys.argv[1]), int(sys.argv[2])
if not cpu.can_measure:
    print(json.dumps(cpu.memory_method)), sys.exit()
hidden = torch.randn(rows, {HIDDEN}).bfloat16().requires_grad_()
weight = torch.randn({VOCAB}, {HIDDEN}).mul_(0.05).bfloat16().requires_grad_()
ids, slope = torch.randint({VOCAB}, (rows,)), torch.randn(rows)

def work():
    out = linear_log_probs(hidden, weight, ids, return_entropy=True, retain_bytes=retain)
    return torch.autograd.grad(out[:2], (hidden, weight), (slope, slope))

work()  # oneDNN makes kernels for these shapes
grads, peak = cpu.peak_bytes(work)
print(json.dumps(peak - sum(grad.nbytes for grad in grads)))
"""


def beyond(rows: int, retain: int = 0) -> int:
    command = [sys.executable, "-c", CHILD, str(rows), str(retain)]
    root = Path(__file__).resolve().parents[2]
    child = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    found = json.loads(child.stdout)
    if isinstance(found, str):
        pytest.skip(found)
    return found


def promised(rows: int) -> int:
    return WORKSPACE["cpu"] + 8 * rows * HIDDEN + LIBRARIES


@pytest.mark.parametrize("rows", [512, 2048, 8192])
def test_memory_keeps_to_the_workspace(rows: int) -> None:
    assert beyond(rows) <= promised(rows)


def test_memory_of_retained_logits_is_seen() -> None:
    logits = 2048 * VOCAB * 2
    assert promised(2048) < beyond(2048, retain=logits) < promised(2048) + logits
