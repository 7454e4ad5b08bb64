"""What only the triton row promises: how it cuts rows; and the row itself on a GPU."""

from __future__ import annotations

import pytest
import torch

import interpreter
from logpi import token_log_probs
from logpi.testing import CASES, DTYPES, Case, bits
from rows import ROWS, Row

ALL = {f"return_{name}": True for name in ("entropy", "collision", "lse", "top1", "mean_logit")}


on_triton = pytest.mark.parametrize(
    "kernel_row", [row for row in ROWS if row.backend == "triton"], ids=str, indirect=True
)


@on_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_split_rows_have_the_same_bits(kernel_row: Row, case: Case, dtype: torch.dtype) -> None:
    # 1111 columns in blocks of 32: two groups and more a segment, nine segments and a rest.
    logits = case.logits(2, 1111, dtype=dtype)
    ids = torch.tensor([[5, 1110], [0, 700]])
    results = []
    for few_rows in (0, 2):
        with interpreter.small_tiles(block=32, segment=256, few_rows=few_rows):
            results.append(token_log_probs(logits, ids, backend="triton", **ALL))
    for one, other in zip(*results, strict=True):
        assert torch.equal(bits(one), bits(other))
    truth = token_log_probs(logits.double(), ids, backend="torch", **ALL)
    torch.testing.assert_close(results[0].log_probs.double(), truth.log_probs, rtol=1e-6, atol=3e-5)
    assert torch.equal(results[0].top1, truth.top1)


@on_triton
def test_segments_depend_on_the_length_alone_and_cover_it(kernel_row: Row) -> None:
    from logpi.ops.token_log_probs import _triton

    group = 4 * _triton.TILES.block
    for length in (1, group, group + 1, 32_064, 151_936, 262_144):
        size, count = _triton._segments(length)
        assert size % group == 0
        assert (count - 1) * size < length <= count * size
        assert size <= max(group, _triton.TILES.segment)
