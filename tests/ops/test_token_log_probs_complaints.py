"""What users complained about in other libraries, one test per complaint, by its catalogue number.

Numbers that are missing belong to other ops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from logpi import KeepSet, token_log_probs
from logpi.testing import (
    CASES,
    DTYPES,
    SEEDS,
    assert_op_within_budget,
    assert_within_budget,
    bits,
    nan_empty,
)

if TYPE_CHECKING:
    from rows import Row

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
FIELDS = {"return_entropy": True, "return_collision": True, "return_lse": True}
V = 4999  # prime; more than one 8 kB chunk in every dtype


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def randint(below: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def gradient(logits: Tensor, ids: Tensor, backend: str, upstream: Tensor, **options) -> Tensor:
    """Of log_probs, under `upstream`."""
    leaf = logits.detach().requires_grad_()
    log_probs = token_log_probs(leaf, ids, backend=backend, **options).log_probs
    return torch.autograd.grad(log_probs, leaf, upstream)[0]


@by_dtype
@pytest.mark.parametrize("first_finite", [1, 2048, 4096, V - 1])  # chunks begin at 2048 and 4096
def test_complaint_01_neg_inf_prefix(row: Row, first_finite: int, dtype: torch.dtype) -> None:
    logits = randn(3, V, dtype=dtype)
    logits[:, :first_finite] = -torch.inf
    ids = torch.tensor([[first_finite, 0], [V - 1, 0], [V - 1, first_finite - 1]])
    out = token_log_probs(logits, ids, backend=row.backend, **FIELDS)
    assert not any(field.isnan().any() for field in out if field is not None)
    assert out.log_probs[:, 1].tolist() == [-torch.inf] * 3
    assert_op_within_budget(token_log_probs, logits, ids, backend=row.backend, **FIELDS)


@by_dtype
@pytest.mark.parametrize("at", [0, 17, 2048, V - 1])
def test_complaint_01_exactly_one_finite_logit(row: Row, at: int, dtype: torch.dtype) -> None:
    logits = torch.full((2, V), -torch.inf, dtype=dtype)
    logits[:, at] = torch.tensor([-3e4, 3e4])
    ids = torch.tensor([at, (at + 1) % V])
    out = token_log_probs(logits, ids, backend=row.backend, **FIELDS)
    assert out.log_probs.tolist() == [0.0, -torch.inf]
    assert out.entropy.tolist() == [0.0, 0.0]  # 0 * -inf counts as 0
    assert out.collision.tolist() == [1.0, 1.0]
    assert out.lse.tolist() == logits[:, at].tolist()


@by_dtype
def test_complaint_01_hugely_negative_row(row: Row, dtype: torch.dtype) -> None:
    logits = torch.full((1, V), -1e4, dtype=dtype)
    ids = torch.tensor([3])
    out = token_log_probs(logits, ids, return_entropy=True, backend=row.backend)
    uniform = torch.log(torch.tensor([V], dtype=torch.float32))
    torch.testing.assert_close(out.entropy, uniform, rtol=1e-6, atol=0)
    assert_op_within_budget(token_log_probs, logits, ids, backend=row.backend, **FIELDS)


@by_dtype
def test_complaint_01_all_neg_inf_row_is_nan_alone(row: Row, dtype: torch.dtype) -> None:
    logits = randn(3, V, dtype=dtype)
    ids = randint(V, 3)
    alone = token_log_probs(logits[::2], ids[::2], return_entropy=True, backend=row.backend)
    logits[1] = -torch.inf  # no distribution at all: 0 / 0
    out = token_log_probs(logits, ids, return_entropy=True, backend=row.backend)
    for ours, others in zip(out[:2], alone[:2], strict=True):
        assert ours.isnan().tolist() == [False, True, False]
        assert torch.equal(ours[::2], others)


@by_dtype
@pytest.mark.parametrize("shift", [1e4, -1e4, 3e4])
def test_complaint_02_common_offset(row: Row, shift: float, dtype: torch.dtype) -> None:
    # Multiples of 256 survive the shift in bf16 too, so the answers must agree to the bit
    # after a temperature of 256 makes an ordinary distribution of them.
    shift = round(shift / 256) * 256
    steps = randint(7, 4, V).float() * 256
    exact = (steps + shift).to(dtype).float() == steps + shift
    steps = steps.where(exact, 0.0)
    ids = randint(V, 4)
    options = {"temperature": 256.0, "return_entropy": True, "backend": row.backend}
    base = token_log_probs(steps.to(dtype), ids, **options)
    moved = token_log_probs((steps + shift).to(dtype), ids, **options)
    truth = token_log_probs(steps.double(), ids, temperature=256.0, return_entropy=True)
    for name in ("log_probs", "entropy"):
        yardstick, true = getattr(base, name), getattr(truth, name)
        assert_within_budget(getattr(moved, name), yardstick, true, name=f"{name} at {shift}")


@by_dtype
@pytest.mark.parametrize("p", [0.9, 0.99, 0.999, 1 - 1e-6])
def test_complaint_03_true_class_gradient_at_p_near_one(
    row: Row, p: float, dtype: torch.dtype
) -> None:
    # d log p / d x_token = 1 - p; written as exp(log p) - 1 in low precision it is 0 or noise.
    columns = 331 if row.tiny else V
    logits = randn(8, columns, dtype=dtype)  # 8 rows: of one, the yardstick's error would be luck
    ids, upstream = randint(columns, 8), 0.1 + torch.rand(8)
    rest = logits.scatter(-1, ids[:, None], -torch.inf).double().logsumexp(-1)
    token_logits = rest + torch.tensor(p / (1 - p), dtype=torch.float64).log()
    logits[torch.arange(8), ids] = token_logits.to(dtype)
    ours, truth = (
        gradient(x, ids, backend, upstream.to(x)).gather(-1, ids[:, None])[:, 0].double()
        for x, backend in ((logits, row.backend), (logits.double(), "torch"))
    )
    assert (ours > 0).all()
    if row.backend != "torch":  # which loses to exp(x - lse) what kernels that keep max need not
        # p is float32: 4 ulp just below 1, a quarter of 1 - p at the last p. Then dtype rounds.
        allowed = upstream * 4 * 2**-24 + torch.finfo(dtype).eps * truth
        assert ((ours - truth).abs() <= allowed).all()
    assert_op_within_budget(token_log_probs, logits, ids, backend=row.backend, **FIELDS)


@by_dtype
def test_complaint_04_log_prob_is_never_positive(row: Row, dtype: torch.dtype) -> None:
    for case in CASES:
        for seed in SEEDS[: 1 if row.tiny else None]:
            rows = 2 if row.tiny else 8
            logits = case.logits(rows, 257, dtype=dtype, seed=seed)
            best = logits.argmax(-1, keepdim=True)
            ids = torch.cat([best, randint(257, rows, 3, seed=seed)], -1)
            for temperature in (1.0, 0.05, 1e-4):
                out = token_log_probs(logits, ids, temperature=temperature, backend=row.backend)
                assert (out.log_probs <= 0).all(), f"{case}, seed {seed}, {temperature}"


@by_dtype
def test_complaint_05_outputs_are_float32(row: Row, dtype: torch.dtype) -> None:
    logits = randn(3, 11, dtype=dtype).requires_grad_()
    options = {"return_mean_logit": True, "return_top1": True, **FIELDS, "backend": row.backend}
    plain = token_log_probs(logits, randint(11, 3), **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = token_log_probs(logits, randint(11, 3), **options)
    for out in (plain, cast):
        assert {f.dtype for f in (*out[:4], out.mean_logit)} == {torch.float32}
        assert out.top1.dtype == torch.bool
    (grad,) = torch.autograd.grad(plain.log_probs, logits, randn(3))
    assert grad.dtype == dtype


def test_complaint_05_default_dtype_changes_nothing(row: Row) -> None:
    logits, ids = randn(3, 11).requires_grad_(), randint(11, 3)
    expected = token_log_probs(logits, ids, return_entropy=True, backend=row.backend)
    (expected_grad,) = torch.autograd.grad(expected.entropy, logits, randn(3))
    upstream = randn(3)
    for default in (torch.bfloat16, torch.float64):  # model loaders set it and forget it
        torch.set_default_dtype(default)
        try:
            out = token_log_probs(logits, ids, return_entropy=True, backend=row.backend)
            (grad,) = torch.autograd.grad(out.entropy, logits, upstream)
        finally:
            torch.set_default_dtype(torch.float32)
        assert out.log_probs.dtype == torch.float32
        for ours, same in ((out[0], expected[0]), (out[1], expected[1]), (grad, expected_grad)):
            assert torch.equal(bits(ours), bits(same))


@by_dtype
@pytest.mark.parametrize("padding", [1, 7, 63])  # below, at and beyond a vector's width
@pytest.mark.parametrize("columns", [1, 5, 31, 33, 1021])  # none a multiple of a block
def test_complaint_07_softcap_on_padding(
    row: Row, columns: int, padding: int, dtype: torch.dtype
) -> None:
    # softcap(-inf) is -softcap: whoever pads with -inf first gives the padding probability.
    rows = 1 if row.tiny else 3
    logits = 20 * randn(rows, columns, dtype=dtype)
    padded = torch.cat([logits, torch.full((rows, padding), torch.nan, dtype=dtype)], -1)
    ids, upstream = randint(columns, rows), randn(rows)
    options = {"softcap": 5.0, "backend": row.backend}
    out = token_log_probs(padded, ids, vocab_size=columns, **FIELDS, **options)
    alone = token_log_probs(logits, ids, **FIELDS, **options)
    for ours, expected in zip(out[:4], alone[:4], strict=True):
        assert torch.equal(ours, expected)
    grad = gradient(padded, ids, upstream=upstream, vocab_size=columns, **options)
    assert torch.equal(grad[:, :columns], gradient(logits, ids, upstream=upstream, **options))
    assert (grad[:, columns:] == 0).all()


def test_complaint_09_seventy_thousand_rows(row: Row) -> None:
    # A grid's second dimension ends at 65535; 31 columns keep the matrix small.
    if row.tiny:
        pytest.skip(f"{row}: 70 thousand programs would take an hour")
    logits, ids = randn(70_001, 31), randint(31, 70_001)
    assert_op_within_budget(token_log_probs, logits, ids, backend=row.backend, **FIELDS)


def test_complaint_09_a_new_length_does_not_recompile(row: Row) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()

    @torch.compile(backend=counter, fullgraph=True, dynamic=True)
    def loss(logits: Tensor, ids: Tensor) -> Tensor:
        out = token_log_probs(logits, ids, return_entropy=True, backend=row.backend)
        return out.log_probs.sum() + 0.1 * out.entropy.sum()

    counts = []
    for length in range(5, 15):  # ten lengths, none of them the specialised 0 and 1
        logits = randn(length, 19).requires_grad_()
        loss(logits, randint(19, length)).backward()
        counts.append(counter.frame_count)  # tracing may restart once before the first is done
    assert counts == counts[:1] * 10


@by_dtype
def test_complaint_10_strided_everything(row: Row, dtype: torch.dtype) -> None:
    # (more layouts, one by one, in test_token_log_probs_layout.py)
    padded = torch.full((2, 6, V + 5), torch.nan, dtype=dtype)
    padded[..., :V] = randn(2, 6, V, dtype=dtype)
    logits = padded[:, :-1, :V]
    ids = randint(V, 5, 2).T
    mask = torch.tensor([True, False, True, True, False]).expand(2, 5)
    temperature = (0.5 + torch.rand(2, 10))[:, ::2]
    options = {"return_entropy": True, "backend": row.backend}
    strided = token_log_probs(logits, ids, loss_mask=mask, temperature=temperature, **options)
    packed = token_log_probs(
        logits.contiguous(),
        ids.contiguous(),
        loss_mask=mask.contiguous(),
        temperature=temperature.contiguous(),
        **options,
    )
    for ours, expected in zip(strided[:2], packed[:2], strict=True):
        assert torch.equal(ours, expected)


@by_dtype
@pytest.mark.parametrize("scale", [0.001, 1.0])  # flat: a long serial sum of equals shows its bias
@pytest.mark.parametrize("columns", [32001, 50257, 151669])  # real vocabularies, prime or odd
def test_complaint_11_vocabulary_not_divisible(
    kernel_row: Row, columns: int, scale: float, dtype: torch.dtype
) -> None:
    if kernel_row.tiny:
        pytest.skip(f"{kernel_row}: a row of that many columns takes a second")
    for seed in range(3):
        logits = scale * randn(2, columns, seed=seed, dtype=dtype)
        with nan_empty():
            assert_op_within_budget(
                token_log_probs,
                logits,
                torch.tensor([columns - 1, 0]),
                backend=kernel_row.backend,
                name=f"seed {seed}:",
                return_mean_logit=True,
                **FIELDS,
            )


@by_dtype
def test_complaint_11_every_small_vocabulary(kernel_row: Row, dtype: torch.dtype) -> None:
    for columns in range(
        1, 140, 23 if kernel_row.tiny else 1
    ):  # every rest of every vector width and unrolling
        logits, ids = randn(2, columns, dtype=dtype, seed=columns), torch.tensor([columns - 1, 0])
        name = f"V = {columns}:"
        assert_op_within_budget(
            token_log_probs, logits, ids, backend=kernel_row.backend, name=name, **FIELDS
        )


@by_dtype
@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -torch.inf])
def test_complaint_12_masked_rows_leak_nothing(
    row: Row, garbage: float, dtype: torch.dtype
) -> None:
    mask = torch.tensor([True, False, True, False, False])
    logits, ids = randn(5, V, dtype=dtype), randint(V, 5, 2)
    temperature = 0.5 + torch.rand(5)
    logits[~mask], ids[~mask] = garbage, torch.tensor([-100, 2**40])
    temperature[~mask] = torch.tensor([0.0, torch.nan, -1.0])
    logits.requires_grad_()
    all_fields = {"return_mean_logit": True, "return_top1": True, **FIELDS}
    with nan_empty():
        out = token_log_probs(
            logits, ids, loss_mask=mask, temperature=temperature, backend=row.backend, **all_fields
        )
        upstream = randn(5, 2), randn(5)
        upstream[0][~mask], upstream[1][~mask] = torch.nan, torch.nan  # 0 whatever arrives
        (grad,) = torch.autograd.grad(out[:2], logits, upstream)
    for field in out:
        assert (field[~mask] == 0).all()
        assert field[mask].isfinite().all()
    assert (grad[~mask] == 0).all()
    alone = gradient(
        logits[mask],
        ids[mask],
        row.backend,
        upstream[0][mask],
        **{"temperature": temperature[mask]},
    )
    assert grad[mask].isfinite().all()
    assert not torch.equal(grad[mask], alone)  # the entropy's share is in grad and not in alone


@by_dtype
def test_complaint_13_upstream_gradient_is_used(row: Row, dtype: torch.dtype) -> None:
    # Twice the upstream is exactly twice the gradient, and each row follows its own.
    logits, ids, upstream = randn(4, 61, dtype=dtype), randint(61, 4), randn(4)
    grad = gradient(logits, ids, row.backend, upstream)
    twice = gradient(logits, ids, row.backend, 2 * upstream)
    normal = grad.abs() >= torch.finfo(dtype).smallest_normal  # below it, rounding is not relative
    assert normal.any(-1).all()
    assert torch.equal(twice[normal], 2 * grad[normal])
    one = torch.tensor([0.0, 0.0, upstream[2].item(), 0.0])
    expected = grad.clone()
    expected[[0, 1, 3]] = 0
    assert torch.equal(gradient(logits, ids, row.backend, one), expected)


def test_complaint_14_entropy_gradient_is_not_dropped(row: Row) -> None:
    # (its values: the grid of test_token_log_probs_numerics.py, in all three combinations)
    logits, ids, upstream = randn(2, V).requires_grad_(), randint(V, 2), randn(2)
    out = token_log_probs(logits, ids, return_entropy=True, backend=row.backend)
    (by_entropy,) = torch.autograd.grad(out.entropy, logits, upstream, retain_graph=True)
    (by_log_probs,) = torch.autograd.grad(out.log_probs, logits, upstream, retain_graph=True)
    (by_both,) = torch.autograd.grad(out[:2], logits, [upstream, upstream])
    assert by_entropy.abs().max() > 0
    assert not torch.equal(by_both, by_log_probs)
    torch.testing.assert_close(by_both, by_entropy + by_log_probs, rtol=1e-5, atol=1e-7)


def test_complaint_15_retain_graph_twice(row: Row) -> None:
    logits, ids = randn(3, V).requires_grad_(), randint(V, 3)
    log_probs = token_log_probs(logits, ids, backend=row.backend).log_probs
    before = bits(logits).clone()
    first, second = (
        torch.autograd.grad(log_probs, logits, randn(3), retain_graph=True)[0] for _ in range(2)
    )
    assert torch.equal(bits(first), bits(second))
    assert torch.equal(bits(logits), before)


def test_complaint_15_in_place_tells_the_other_consumer(kernel_row: Row) -> None:
    logits, ids = randn(3, V, seed=1).requires_grad_() * 1, randint(V, 3)
    square = logits * logits  # saves the logits
    out = token_log_probs(logits, ids, inplace_backward=True, backend=kernel_row.backend)
    out.log_probs.backward(randn(3), retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.sum().backward()


@by_dtype
def test_complaint_16_compiled_dtypes(row: Row, dtype: torch.dtype) -> None:
    torch._dynamo.reset()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def both(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, ...]:
        options = {"temperature": temperature, "softcap": 20.0, "logit_scale": 0.5}
        return token_log_probs(logits, ids, backend=row.backend, **FIELDS, **options)[:4]

    logits = randn(3, V, dtype=dtype).requires_grad_()
    out = both(logits, randint(V, 3), 0.7)
    assert {field.dtype for field in out} == {torch.float32}
    (grad,) = torch.autograd.grad(out[:2], logits, [randn(3), randn(3)])
    assert grad.dtype == dtype


@pytest.mark.parametrize("bad", [-1, 11, 12, 2**31, -(2**40), 2**62])  # 11: padding begins
def test_complaint_17_id_out_of_range(row: Row, bad: int) -> None:
    logits = randn(3, 13)
    ids = torch.tensor([0, bad, 10])
    if not row.reads_values:
        logits.requires_grad_()
        for some in (ids, torch.stack([ids.clamp(0, 10), ids], -1)):
            out = token_log_probs(logits, some, vocab_size=11, backend=row.backend, **FIELDS)
            assert out.log_probs.view(3, -1)[:, -1].isnan().tolist() == [False, True, False]
            (grad,) = torch.autograd.grad(out.log_probs, logits, torch.ones_like(out.log_probs))
            assert grad[::2].isfinite().all()
        return
    with pytest.raises(ValueError, match=r"token_ids: expected .*\[0, 11\)") as error:
        token_log_probs(logits, ids, vocab_size=11, backend=row.backend)
    assert str(bad) in str(error.value)
    assert "row 1" in str(error.value)
    many = torch.stack([ids.clamp(0, 10), ids], -1)  # one bad id among good ones
    with pytest.raises(ValueError, match="token_ids"):
        token_log_probs(logits, many, vocab_size=11, backend=row.backend)


@pytest.mark.parametrize("bad", [0.0, -0.0, -1.0, -1e-30, torch.nan, torch.inf, -torch.inf])
def test_complaint_19_temperature_that_is_none(row: Row, bad: float) -> None:
    logits, ids = randn(3, 11), randint(11, 3)
    with pytest.raises(ValueError, match=r"temperature: expected .*above 0, got"):
        token_log_probs(logits, ids, temperature=bad, backend=row.backend)
    per_row = torch.tensor([1.0, 1.0, bad])
    if not row.reads_values:
        out = token_log_probs(logits, ids, temperature=per_row, backend=row.backend, **FIELDS)
        for name in ("log_probs", "entropy", "collision", "lse"):
            assert getattr(out, name).isnan().tolist() == [False, False, True]
        return
    with pytest.raises(ValueError, match=r"temperature: expected .*above 0, got .*row 2"):
        token_log_probs(logits, ids, temperature=per_row, backend=row.backend)


@by_dtype
def test_complaint_20_same_bits_in_every_batch(kernel_row: Row, dtype: torch.dtype) -> None:
    # 4096 rows of 301 columns; the same 7 rows alone, in a batch of 7, and scattered in 4096.
    num_rows = 40 if kernel_row.tiny else 4096
    logits, ids = 3 * randn(num_rows, 301, dtype=dtype), randint(301, num_rows)
    options = {"return_mean_logit": True, **FIELDS, "backend": kernel_row.backend}
    upstream = randn(num_rows), randn(num_rows)

    def run(rows: Tensor) -> tuple[Tensor, ...]:
        leaf = logits[rows].requires_grad_()
        out = token_log_probs(leaf, ids[rows], **options)
        grad = torch.autograd.grad(out[:2], leaf, [head[rows] for head in upstream])[0]
        return (*out[:4], out.mean_logit, grad)

    some = torch.tensor([0, 1, 511, 2047, 2048, 3000, 4095]) % num_rows
    whole, seven = run(torch.arange(num_rows)), run(some)
    for position, at in enumerate(some):
        one = run(at[None])
        for in_4096, in_7, alone in zip(whole, seven, one, strict=True):
            assert torch.equal(bits(in_4096[at]), bits(in_7[position]))
            assert torch.equal(bits(in_4096[at]), bits(alone[0]))


def test_complaint_20_same_bits_in_every_batch_of_long_rows(kernel_row: Row) -> None:
    # Long rows could be split between threads when there are few of them.
    if kernel_row.interpreted:
        pytest.skip(f"{kernel_row}: test_token_log_probs_triton.py splits short rows")
    logits, ids = 3 * randn(7, 151_669), randint(151_669, 7)
    keep = KeepSet.from_lists([randint(151_669, 999, seed=n).unique().tolist() for n in range(7)])
    for support in (None, slice(1000, 150_000), keep):
        options = {**FIELDS, "return_mean_logit": True, "backend": kernel_row.backend}
        whole = token_log_probs(logits, ids, support=support, **options)
        for n in range(7):
            if support is keep:
                begin, end = keep.indptr[n], keep.indptr[n + 1]
                mine = KeepSet(torch.tensor([0, end - begin]), keep.indices[begin:end])
            else:
                mine = support
            alone = token_log_probs(logits[n], ids[n], support=mine, **options)
            for ours, expected in zip(whole, alone, strict=True):
                assert ours is None or torch.equal(bits(ours[n]), bits(expected))
