# mypy: ignore-errors
"""The uniform numbers inside a Triton kernel: the same bits."""

from __future__ import annotations

import pytest
import torch

from logpi.core import triton_row
from logpi.core.draws import uniforms

pytest.importorskip("triton")

import triton.language as tl

from logpi.core._triton_draws import uniform
from logpi.ops.token_log_probs._triton_kernels import I64, kernel


def draw(rows, seed: I64, step: I64, out):
    at = tl.arange(0, 4)
    tl.store(out + at, uniform(seed, step, tl.load(rows + at)))
    tl.store(out + 4, uniform(seed, step, tl.load(rows + 3)))  # as a program that has one row


@pytest.mark.skipif(not triton_row.INTERPRETED, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize(
    ("seed", "step"), [(0, 0), (2**63 - 1, 5), (2**40 + 9, 2**33 + 1), (1, 2**63 - 1)]
)
def test_triton_draws_the_same(seed: int, step: int) -> None:
    rows = torch.tensor([0, 1, 2**35 + 2, 2**63 - 1])
    out = torch.empty(5, dtype=torch.float64)
    kernel(draw)[(1,)](rows, seed, step, out)
    expected = uniforms(seed, step, rows)
    assert out.tolist() == [*expected.tolist(), expected[3].item()]
