"""What only the triton row promises: how it cuts rows; and the row itself on a GPU."""

from __future__ import annotations

import pytest
import torch

import interpreter
from logpi import token_log_probs
from logpi.testing import CASES, DTYPES, Case, assert_op_within_budget, bits
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_budget_on_a_gpu(case: Case, dtype: torch.dtype) -> None:
    fields = {name: True for name in ALL if name != "return_top1"}
    for num_rows, columns in ((4, 4999), (3, 151_936), (300, 32_064)):
        logits = case.logits(num_rows, columns, dtype=dtype).cuda()
        ids = torch.randint(columns, (num_rows, 2), device="cuda")
        assert_op_within_budget(
            token_log_probs, logits, ids, backend="triton", temperature=0.7, **fields
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_ten_lengths_compile_once_on_a_gpu() -> None:
    from logpi.ops.token_log_probs import _triton_kernels

    def compiled() -> int:
        return sum(
            len(caches[0]) for caches in _triton_kernels.forward_kernel.device_caches.values()
        )

    counts = []
    for step in range(10):
        logits = torch.randn(300 + 7 * step, 256, device="cuda")
        ids = torch.zeros(len(logits), dtype=torch.int64, device="cuda")
        token_log_probs(logits, ids, temperature=1.0 / (1 + step), backend="triton")
        counts.append(compiled())
    assert counts == counts[:1] * 10
