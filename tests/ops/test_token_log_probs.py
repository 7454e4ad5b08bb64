"""The contract: shapes, fields, exact values, and every documented error."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from logpi import BackendError, KeepSet, token_log_probs
from logpi.testing import CASES, DTYPES, assert_op_within_budget, bits, nan_empty

if TYPE_CHECKING:
    from rows import Row

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
ALL = {f"return_{name}": True for name in ("entropy", "collision", "lse", "top1", "mean_logit")}
PER_ROW = ("entropy", "collision", "lse", "mean_logit")
V = 4999  # prime; more than one 8 kB chunk in every dtype


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)).to(dtype)


# ---- rows that run ------------------------------------------------------------------------------


def test_the_cpu_row_runs_here() -> None:
    """The other tests skip a row that cannot run, and must not all be skipped unseen."""
    token_log_probs(randn(2, 3), torch.tensor([0, 1]), backend="cpu")


def test_forcing_an_isa_by_name() -> None:
    from logpi import _C

    native = _C.cpu_isa()
    logits, ids = randn(3, V), torch.tensor([0, 1, 2])
    expected = token_log_probs(logits, ids, return_entropy=True, backend="cpu")
    _C.force_cpu_isa(native)
    forced = token_log_probs(logits, ids, return_entropy=True, backend="cpu")
    assert torch.equal(bits(forced.entropy), bits(expected.entropy))
    with pytest.raises(ValueError, match=f"expected one of .*{native}.*, got 'mmx'"):
        _C.force_cpu_isa("mmx")
    assert _C.cpu_isa() == native


# ---- shapes and fields --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits_shape", "ids_shape"),
    [
        ((7,), ()),  # one row, one token: everything is 0-d
        ((7,), (4,)),  # one row, K tokens
        ((3, 7), (3,)),
        ((3, 7), (3, 1)),  # K = 1 keeps its dim
        ((3, 7), (3, 5)),
        ((2, 3, 7), (2, 3)),
        ((2, 3, 7), (2, 3, 4)),
        ((2, 2, 7), (2, 2)),  # could be read as [N, K]; the leading dims decide
        ((1, 2, 1, 3, 7), (1, 2, 1, 3)),  # five dims
        ((2, 1, 3, 2, 7), (2, 1, 3, 2, 2)),
        ((3, 7), (3, 0)),  # K = 0: entropy without a token
        ((0, 7), (0,)),  # N = 0: a rank without tokens
        ((0, 7), (0, 3)),
        ((2, 0, 7), (2, 0)),
        ((1, 1), (1,)),  # V = 1: log 1
        ((3, 1), (3, 2)),
    ],
)
@pytest.mark.parametrize("id_dtype", [torch.int64, torch.int32], ids=str)
def test_shapes(
    row: Row, logits_shape: tuple[int, ...], ids_shape: tuple[int, ...], id_dtype: torch.dtype
) -> None:
    logits = randn(*logits_shape)
    ids = torch.randint(max(logits_shape[-1], 1), ids_shape, dtype=id_dtype)
    with nan_empty():
        out = token_log_probs(logits, ids, backend=row.backend, **ALL)
        assert_op_within_budget(token_log_probs, logits, ids, backend=row.backend, **ALL)
    assert out.log_probs.shape == ids_shape
    assert out.top1.shape == ids_shape
    assert {getattr(out, name).shape for name in PER_ROW} == {logits_shape[:-1]}


@by_dtype
@pytest.mark.parametrize("num_ids", [2, 3, 8, 9, 61, 300])  # 300 of 61: most come up often
def test_many_ids_of_a_small_vocabulary(row: Row, num_ids: int, dtype: torch.dtype) -> None:
    ids = torch.randint(61, (4, num_ids), generator=torch.Generator().manual_seed(num_ids))
    assert_op_within_budget(
        token_log_probs, randn(4, 61, dtype=dtype), ids, backend=row.backend, **ALL
    )


def test_a_vocabulary_of_one_is_certain(row: Row) -> None:
    logits = torch.tensor([[-3.5], [0.0], [1e30]], requires_grad=True)
    ids = torch.zeros(3, dtype=torch.int64)
    out = token_log_probs(logits, ids, backend=row.backend, **ALL)
    assert out.log_probs.tolist() == out.entropy.tolist() == [0, 0, 0]
    assert out.collision.tolist() == out.top1.tolist() == [1, 1, 1]
    assert torch.equal(out.lse, logits[:, 0])
    assert torch.equal(out.mean_logit, logits[:, 0])
    (grad,) = torch.autograd.grad(out[:2], logits, [randn(3), randn(3)])
    assert (grad == 0).all()


@pytest.mark.parametrize("name", [*PER_ROW, "top1"])
def test_a_field_not_asked_for_is_none(row: Row, name: str) -> None:
    logits, ids = randn(3, 7).requires_grad_(), torch.tensor([1, 2, 3])
    one = {f"return_{name}": True}
    out = token_log_probs(logits, ids, backend=row.backend, **one)
    assert [k for k, v in out._asdict().items() if v is not None] == ["log_probs", name]
    whole = token_log_probs(logits, ids, backend=row.backend, **ALL)
    for field in ("log_probs", name):  # asking for more changes no bit
        assert torch.equal(bits(getattr(out, field)), bits(getattr(whole, field)))


def test_which_fields_carry_a_gradient(row: Row) -> None:
    ids = torch.tensor([1, 2, 3])
    out = token_log_probs(randn(3, 7).requires_grad_(), ids, backend=row.backend, **ALL)
    carries = [name for name, field in out._asdict().items() if field.requires_grad]
    assert carries == ["log_probs", "entropy"]
    out = token_log_probs(randn(3, 7), ids, backend=row.backend, **ALL)
    assert not any(field.requires_grad for field in out)


def test_float64_is_served_by_the_definition() -> None:
    out = token_log_probs(randn(3, 7).double(), torch.tensor([1, 2, 3]), **ALL)
    assert {f.dtype for f in (*out[:4], out.mean_logit)} == {torch.float64}


# ---- exact values -------------------------------------------------------------------------------


def test_by_hand(row: Row) -> None:
    logits = torch.tensor([[math.log(1), math.log(2), math.log(5)]])  # p = 1/8, 2/8, 5/8
    out = token_log_probs(logits, torch.tensor([[1, 2]]), backend=row.backend, **ALL)
    expected = {
        "log_probs": [[math.log(2 / 8), math.log(5 / 8)]],
        "entropy": [math.log(8) - (2 * math.log(2) + 5 * math.log(5)) / 8],
        "collision": [30 / 64],
        "lse": [math.log(8)],
        "top1": [[False, True]],
        "mean_logit": [math.log(10) / 3],
    }
    for name, value in expected.items():
        torch.testing.assert_close(
            getattr(out, name), torch.tensor(value), rtol=2**-22, atol=0, msg=name
        )


def test_top1_names_the_first_among_equals(row: Row) -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0], [0.0, -0.0, -1.0, -1.0]])
    ids = torch.arange(4).expand(3, 4)
    top1 = token_log_probs(logits, ids, return_top1=True, backend=row.backend).top1
    assert top1.int().argmax(-1).tolist() == [1, 0, 0]
    assert top1.sum(-1).tolist() == [1, 1, 1]
    inside = token_log_probs(
        logits, ids, support=slice(2, 4), return_top1=True, backend=row.backend
    ).top1
    assert inside.nonzero().tolist() == [[0, 2], [1, 2], [2, 2]]


@pytest.mark.parametrize("support", ["slice", "keep_set"])
def test_a_token_outside_its_support(row: Row, support: str) -> None:
    logits, ids, upstream = randn(3, 11).requires_grad_(), torch.tensor([0, 4, 10]), randn(3)
    inside = slice(2, 9) if support == "slice" else KeepSet.from_lists([[8, 2, 5], [4], [0, 1]])
    mask = torch.zeros(3, 11, dtype=torch.bool)
    mask[:, 2:9] = True
    if support == "keep_set":
        mask = inside.to_mask(11)
    out = token_log_probs(logits, ids, support=inside, backend=row.backend, **ALL)
    assert out.log_probs.isneginf().tolist() == [True, False, True]
    assert not out.top1[0]
    (grad,) = torch.autograd.grad(out.log_probs, logits, upstream)
    p = logits.detach().double().masked_fill(~mask, -torch.inf).softmax(-1)
    here = (torch.arange(11) == ids[:, None]) & mask  # d/dx (x_token - lse), x_token out of reach
    expected = upstream[:, None] * (here.double() - p)
    torch.testing.assert_close(grad.double(), expected, rtol=0, atol=2**-23)
    assert (grad[~mask] == 0).all()


@by_dtype
@pytest.mark.parametrize("garbage", [torch.nan, torch.inf])
@pytest.mark.parametrize("softcap", [None, 10.0])
def test_what_is_outside_the_support_is_not_seen(
    row: Row, softcap: float | None, garbage: float, dtype: torch.dtype
) -> None:
    logits, ids, upstream = randn(2, V, dtype=dtype), torch.tensor([2000, 3000]), randn(2)
    keep = KeepSet.from_lists([list(range(1000, 4000))[::-1], [3000, 4, 2999]])
    for support, inside in (
        (slice(1000, 4000), torch.arange(V).expand(2, V).clamp(1000, 3999) == torch.arange(V)),
        (keep, keep.to_mask(V)),
    ):
        results = []
        for outside in (0.0, garbage):
            leaf = logits.where(inside, outside).requires_grad_()
            options = {"support": support, "softcap": softcap, "backend": row.backend}
            out = token_log_probs(leaf, ids, **options, **ALL)
            (grad,) = torch.autograd.grad(out[:2], leaf, [upstream, upstream])
            results.append([*out, grad])
        for expected, ours in zip(*results, strict=True):
            assert torch.equal(ours, expected)


@by_dtype
def test_nan_stays_in_its_row(row: Row, dtype: torch.dtype) -> None:
    # x86's max returns its second operand for NaN: a NaN may vanish at some places of a chunk.
    for at in (0, 1, 15, 63, 2047, 2048, 4095, 4096, V - 2, V - 1):
        logits = randn(3, V, dtype=dtype).requires_grad_()
        ids, upstream = torch.tensor([5, 6, 7]), [randn(3), randn(3)]
        clean = token_log_probs(logits, ids, backend=row.backend, **ALL)
        (clean_grad,) = torch.autograd.grad(clean[:2], logits, upstream)
        with torch.no_grad():
            logits[1, at] = torch.nan
        out = token_log_probs(logits, ids, backend=row.backend, **ALL)
        (grad,) = torch.autograd.grad(out[:2], logits, upstream)
        for name in ("log_probs", *PER_ROW):
            assert getattr(out, name)[1].isnan(), f"{name}, NaN at {at}"
        assert not out.top1[1]
        assert grad[1].isnan().all(), f"NaN at {at}"
        for ours, expected in zip([*out, grad], [*clean, clean_grad], strict=True):
            assert torch.equal(bits(ours[::2]), bits(expected[::2])), f"NaN at {at}"


@by_dtype
def test_plus_inf_makes_its_row_nan(row: Row, dtype: torch.dtype) -> None:
    for at in (0, 2048, V - 1):
        logits = randn(3, V, dtype=dtype)
        logits[1, at] = torch.inf
        ids = torch.tensor([5, at, 7])
        out = token_log_probs(logits, ids, return_entropy=True, backend=row.backend)
        assert out.log_probs.isnan().tolist() == [False, True, False]
        assert out.entropy.isnan().tolist() == [False, True, False]


@by_dtype
def test_two_runs_threads_and_grad_mode_change_no_bit(row: Row, dtype: torch.dtype) -> None:
    logits, ids = CASES[2].logits(9, V, dtype=dtype), torch.arange(9)
    upstream = [randn(9), randn(9)]

    def run(grad_mode: bool) -> list[Tensor]:
        leaf = logits.clone().requires_grad_(grad_mode)
        out = token_log_probs(leaf, ids, backend=row.backend, **ALL)
        return [*out, *(torch.autograd.grad(out[:2], leaf, upstream) if grad_mode else ())]

    expected, again, without = run(True), run(True), run(False)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        other = run(True)
    finally:
        torch.set_num_threads(threads)
    with torch.no_grad():
        leaf = logits.clone().requires_grad_()
        no_grad = token_log_probs(leaf, ids, backend=row.backend, **ALL)
    with torch.inference_mode():
        inference = token_log_probs(logits, ids, backend=row.backend, **ALL)
    for results in (again, without, other, no_grad, inference):
        for ours, same in zip(results, expected, strict=False):
            assert torch.equal(bits(ours), bits(same))


# ---- errors: the argument, what was expected, what came -----------------------------------------

KEEP = KeepSet.from_lists([[1, 2], [3]])
TWO = torch.tensor([1, 2])


def keep(indptr: list[int], indices: list[int]) -> KeepSet:
    return KeepSet(torch.tensor(indptr), torch.tensor(indices, dtype=torch.int32))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"logits": [[1.0]]}, TypeError, r"logits: expected a torch.Tensor, got list"),
        ({"logits": TWO}, TypeError, r"logits: expected float32 or .*, got int64"),
        ({"logits": torch.tensor(1.0)}, ValueError, r"logits: expected \[.., V\], got a 0-d"),
        ({"logits": randn(0, 0), "token_ids": TWO[:0]}, ValueError, r"logits: .*got V = 0"),
        ({"logits": randn(2, 0)}, ValueError, r"logits: expected at least one .*, got V = 0"),
        ({"token_ids": 3}, TypeError, r"token_ids: expected a torch.Tensor, got int"),
        ({"token_ids": TWO.float()}, TypeError, r"token_ids: expected int64 or .* float32"),
        ({"token_ids": TWO[:1]}, ValueError, r"token_ids: expected .*\(2,\).*\(2, 11\).*\(1,\)"),
        ({"token_ids": TWO[None]}, ValueError, r"token_ids: expected shape .*got \(1, 2\)"),
        ({"temperature": "1"}, TypeError, r"temperature: expected a number, got str"),
        ({"temperature": True}, TypeError, r"temperature: expected a number, got bool"),
        ({"temperature": torch.ones(3)}, ValueError, r"temperature: .*\(2,\), got \(3,\)"),
        ({"temperature": torch.ones(())}, ValueError, r"temperature: .*\(2,\), got \(\)"),
        ({"temperature": TWO}, TypeError, r"temperature: expected float32 .*, got int64"),
        ({"support": [1, 2]}, TypeError, r"support: expected None, a slice .*, got list"),
        ({"support": slice(3, 3)}, ValueError, r"support: expected slice\(a, b\) .*, got slice"),
        ({"support": slice(0, 12)}, ValueError, r"support: .*<= 11, got slice\(0, 12, None\)"),
        ({"support": slice(-3, None)}, ValueError, r"support: .*got slice\(-3, None, None\)"),
        ({"support": slice(0, 9, 2)}, ValueError, r"support: .*got slice\(0, 9, 2\)"),
        ({"support": slice(0, 9), "vocab_size": 8}, ValueError, r"support: .*<= 8, got"),
        ({"support": keep([0, 1], [3])}, ValueError, r"support.indptr: .*\(3,\), got \(2,\)"),
        ({"vocab_size": 0}, ValueError, r"vocab_size: expected 1 to 11 .*, got 0"),
        ({"vocab_size": 12}, ValueError, r"vocab_size: expected 1 to 11 .*, got 12"),
        ({"vocab_size": 3.5}, TypeError, r"vocab_size: expected an int, got float"),
        ({"vocab_size": True}, TypeError, r"vocab_size: expected an int, got bool"),
        ({"vocab_size": -1}, ValueError, r"vocab_size: expected 1 to 11 .*, got -1"),
        ({"loss_mask": [True, False]}, TypeError, r"loss_mask: expected a torch.Tensor, got list"),
        ({"loss_mask": TWO[:1]}, ValueError, r"loss_mask: expected shape \(2,\), got \(1,\)"),
        ({"softcap": 0.0}, ValueError, r"softcap: expected a finite number above 0, got 0.0"),
        ({"softcap": -1}, ValueError, r"softcap: expected a finite number above 0, got -1"),
        ({"softcap": math.inf}, ValueError, r"softcap: expected a finite number .*, got inf"),
        ({"softcap": "no"}, TypeError, r"softcap: expected a number, got str"),
        ({"logit_scale": 0}, ValueError, r"logit_scale: expected a finite number .*, got 0"),
        ({"logit_scale": math.nan}, ValueError, r"logit_scale: expected .*, got nan"),
        ({"backend": "cudnn"}, ValueError, r"backend: expected one of 'auto'.*got 'cudnn'"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"logits": randn(2, 11), "token_ids": TWO} | changes
    with pytest.raises(error, match=message):
        token_log_probs(**arguments)


@pytest.mark.parametrize(
    ("support", "message"),
    [
        (
            keep([0, 2, 3], [1, 11, 3]),
            r"support.indices: expected ids in \[0, 11\), got 11 in row 0",
        ),
        (
            keep([0, 2, 3], [1, 2, -1]),
            r"support.indices: expected ids in \[0, 11\), got -1 in row 1",
        ),
        (keep([0, 2, 4], [1, 2, 3, 3]), r"support.indices: expected each id once.* row 1"),
        (keep([0, 2, 2], [1, 2]), r"support: expected at least one kept id, got none in row 1"),
        (keep([1, 2, 3], [1, 2, 3]), r"support.indptr: .*from 0 to at most 3"),
        (keep([0, 4, 3], [1, 2, 3]), r"support.indptr: .*from 0 to at most 3"),
        (keep([0, 2, 4], [1, 2, 3]), r"support.indptr: .*from 0 to at most 3"),
        (keep([0, -1, 3], [1, 2, 3]), r"support.indptr: .*from 0 to at most 3"),
    ],
)
def test_bad_kept_ids(row: Row, support: KeepSet, message: str) -> None:
    if not row.reads_values:
        if "each id once" in message or support.indptr[0] == 1 or support.indptr[-1] == 2:
            pytest.skip(f"{row}: repeats and the ends of indptr are not looked for")
        out = token_log_probs(randn(2, 11), TWO, support=support, backend=row.backend, **ALL)
        bad = out.log_probs.isnan()
        assert bad.any()
        for name in PER_ROW:
            assert torch.equal(getattr(out, name).isnan(), bad)
        return
    with pytest.raises(ValueError, match=message):
        token_log_probs(randn(2, 11), TWO, support=support, backend=row.backend)


def test_kept_ids_of_masked_rows_are_not_looked_at(row: Row) -> None:
    support = keep([0, 3, 3, 5], [99, 99, -7, 3, 4])  # garbage, nothing, two ids
    mask = torch.tensor([False, False, True])
    out = token_log_probs(
        randn(3, 11),
        torch.tensor([-1, 99, 3]),
        support=support,
        loss_mask=mask,
        backend=row.backend,
    )
    assert out.log_probs[:2].tolist() == [0, 0]
    assert out.log_probs[2] < 0


def test_a_mask_of_numbers(row: Row) -> None:
    logits, ids = randn(4, 11), torch.tensor([1, 2, 3, 4])
    mask = torch.tensor([1, 0, 1, 0])
    expected = token_log_probs(logits, ids, loss_mask=mask.bool(), backend=row.backend).log_probs
    for numbers in (mask, mask.float(), mask.to(torch.uint8), 0.5 * mask, -3 * mask):
        ours = token_log_probs(logits, ids, loss_mask=numbers, backend=row.backend).log_probs
        assert torch.equal(ours, expected)


def test_a_refusal_lists_every_rows_reason() -> None:
    with pytest.raises(BackendError) as error:
        token_log_probs(randn(2, 11).double(), TWO, backend="cpu")
    message = str(error.value)
    assert "backend 'cpu' cannot serve" in message
    assert "cpu: serves float32, bfloat16 and float16 logits, got float64" in message
    assert "torch: can serve" in message
    with pytest.raises(BackendError, match="torch: autograd makes its own gradient"):
        token_log_probs(randn(2, 11), TWO, inplace_backward=True, backend="torch")
    with pytest.raises(BackendError, match=r"(?s)cpu: .*float64.*torch: .*cannot write it over"):
        token_log_probs(randn(2, 11).double(), TWO, inplace_backward=True)


def test_a_named_row_never_falls_back() -> None:
    columns_first = randn(11, 2).T  # auto serves it by the definition, cpu must not
    assert token_log_probs(columns_first, TWO).log_probs.shape == (2,)
    with pytest.raises(BackendError, match="unit stride"):
        token_log_probs(columns_first, TWO, backend="cpu")
