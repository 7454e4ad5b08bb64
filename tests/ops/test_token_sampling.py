"""sample_tokens on every row: against a full sort in float64, its draws, its ties, its contract."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from logpi import BackendError, TokenSample, sample_tokens, token_log_probs
from logpi.ops.token_sampling import BACKENDS
from logpi.testing import CASES, Case, assert_within_budget, bits, nan_empty
from rows import ROWS, Row, serve
from sampling_problems import TRUNCATIONS, chi_square_fits, logits

OURS = [row for row in ROWS if row.backend in {row.name for row in BACKENDS}]
DRAW: dict[str, Any] = {"seed": 5, "step": 2}
WHOLE: dict[str, Any] = {**DRAW, "return_entropy": True, "return_keep": True}


@pytest.fixture(params=OURS, ids=str)
def row(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Row]:
    if request.param.interpreted:
        from logpi.ops.token_sampling import _triton

        monkeypatch.setattr(_triton, "BLOCK", 512)  # several blocks a row
    yield from serve(request.param)


def lists(sample: TokenSample) -> list[list[int]]:
    assert sample.keep is not None
    bounds = sample.keep.indptr.tolist()
    ids = sample.keep.indices.tolist()
    return [ids[a:b] for a, b in itertools.pairwise(bounds)]


def same(x: Tensor | None, y: Tensor | None) -> bool:
    return x is y or torch.equal(bits(x), bits(y))


# ---- against the definition ---------------------------------------------------------------------


@functools.cache
def defined(case: Case, size: tuple[int, int], dtype: torch.dtype, truncation: str) -> Any:
    """Logits, a temperature, the truth, and what plain torch makes of the numbers in float32."""
    z = case.logits(*size, dtype=dtype, seed=3)
    temperature = 1.6 if dtype == torch.float32 else 0.3
    options = {**WHOLE, **TRUNCATIONS[truncation], "temperature": temperature}
    truth = sample_tokens(z.double(), backend="torch", **options)
    arguments = {"temperature": temperature, "support": truth.keep, "return_entropy": True}
    return z, options, truth, token_log_probs(z, truth.token_ids, backend="torch", **arguments)


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_definition(row: Row, case: Case, truncation: str) -> None:
    """The kept set of a full sort in float64 exactly, its token, and numbers within the budget. No
    boundary is straddled by these; how often one is, docs/ops/token_sampling.md says."""
    if row.backend == "torch":
        pytest.skip("is the definition")
    for dtype in (torch.float32, torch.bfloat16):
        size = (2, 700) if row.tiny else (6, 2500)
        z, options, truth, yardstick = defined(case, size, dtype, truncation)
        with nan_empty():
            ours = sample_tokens(z, backend=row.backend, **options)
        assert torch.equal(ours.token_ids, truth.token_ids)
        if truth.keep is None:
            assert ours.keep is None
        else:
            assert lists(ours) == lists(truth)
        for name in ("log_probs", "entropy"):
            numbers = (getattr(one, name) for one in (ours, yardstick, truth))
            assert_within_budget(*numbers, name=name)


def test_training_sees_the_same_log_probs(row: Row) -> None:
    z = logits(2, 3, 500)
    temperature = torch.rand(2, 3) + 0.5
    ours = sample_tokens(z, temperature=temperature, top_p=0.9, backend=row.backend, **WHOLE)
    assert ours.token_ids.shape == ours.log_probs.shape == (2, 3)
    trained = [
        token_log_probs(
            x, ours.token_ids, temperature=temperature, support=ours.keep, return_entropy=True
        )
        for x in (z, z.double())
    ]
    for name in ("log_probs", "entropy"):
        numbers = (getattr(one, name) for one in (ours, *trained))
        assert_within_budget(*numbers, name=name)
    inside = [
        token in kept for token, kept in zip(ours.token_ids.flatten(), lists(ours), strict=True)
    ]
    assert all(inside)


@pytest.mark.parametrize("top_p", [0.5, 0.7, 0.8, 0.95])
def test_top_p_ends_among_the_ties_that_top_k_left(row: Row, top_p: float) -> None:
    z = torch.tensor([[0.5, 0.125, 0.125, 0.125, 0.125]]).log()
    kept = {0.5: [0], 0.7: [0, 1], 0.8: [0, 1, 2], 0.95: [0, 1, 2, 3]}[top_p]
    ours = sample_tokens(z, top_k=4, top_p=top_p, backend=row.backend, **WHOLE)
    assert lists(ours) == [kept]


def test_a_number_for_every_row(row: Row) -> None:
    z = logits(4, 600)
    options = {
        "temperature": torch.tensor([0.5, 1.0, 2.0, 1.0]),
        "top_k": torch.tensor([3, 600, 10**12, 20]),
        "top_p": torch.tensor([1.0, 0.5, 1.0, 0.9], dtype=torch.float64),
        "min_p": torch.tensor([0.0, 0.0, 0.25, 0.01]),
    }
    ours = sample_tokens(z, backend=row.backend, **options, **WHOLE)
    for n in range(4):
        number = {name: values[n].item() for name, values in options.items()}
        ids = torch.tensor([n])
        alone = sample_tokens(z[n : n + 1], backend=row.backend, row_ids=ids, **number, **WHOLE)
        assert lists(alone) == lists(ours)[n : n + 1]
        for one, all_of_them in zip(alone[:3], ours[:3], strict=True):
            assert same(one, all_of_them[n : n + 1])
    assert next(len(kept) for kept in lists(ours)) == 3


# ---- which ids are kept -------------------------------------------------------------------------

HALVES = torch.tensor([[0.125, 0.25, 0.125, 0.25, 0.25]]).log()


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 4}, [0, 1, 3, 4]),
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        ({"top_p": 1e-9}, [1]),
        ({"top_p": 0.4}, [1, 3]),
        ({"top_p": 0.7}, [1, 3, 4]),
        ({"top_p": 0.8}, [0, 1, 3, 4]),
        ({"top_p": 1.0}, [0, 1, 2, 3, 4]),
        ({"min_p": 0.6}, [1, 3, 4]),
        ({"min_p": 1.0}, [1, 3, 4]),
        ({"min_p": 0.4}, [0, 1, 2, 3, 4]),
        ({"top_k": 4, "top_p": 0.5}, [1, 3]),  # of 0.875
        ({"top_k": 3, "top_p": 0.6}, [1, 3]),  # 2/3 of what top-k left
        ({"top_k": 4, "top_p": 0.9, "min_p": 0.6}, [1, 3, 4]),
        ({"top_k": 4, "top_p": 0.99, "min_p": 0.1}, [0, 1, 3, 4]),
    ],
)
def test_order_and_ties(row: Row, options: dict[str, Any], kept: list[int]) -> None:
    assert lists(sample_tokens(HALVES, backend=row.backend, **options, **WHOLE)) == [kept]


@pytest.mark.parametrize(
    "options", [{"top_k": 1000}, {"top_p": 0.7}, {"top_k": 1200, "top_p": 0.5}]
)
def test_ties_over_many_blocks(row: Row, options: dict[str, Any]) -> None:
    """Rounded logits: thousands are equal, and the cut goes through them."""
    z = logits(2, 3000, spread=1.0).round()
    z[0, ::7] = -torch.inf
    z[:, 5], z[:, 9] = 0.0, -0.0
    ours = sample_tokens(z, backend=row.backend, **options, **WHOLE)
    assert lists(ours) == lists(sample_tokens(z, backend="torch", **options, **WHOLE))


def test_minus_infinity_is_never_kept(row: Row) -> None:
    z = torch.full((1, 300), -torch.inf)
    z[0, 7], z[0, 260] = 1.0, 2.0
    for options in (
        {"top_k": 50},
        {"top_p": 0.999999},
        {"min_p": 0.0},
        {"top_k": 50, "min_p": 0.01},
    ):
        assert lists(sample_tokens(z, backend=row.backend, **options, **WHOLE)) == [[7, 260]]


@pytest.mark.parametrize("temperature", [1e-30, 1e30])
def test_extreme_temperatures(row: Row, temperature: float) -> None:
    z = logits(3, 400)
    z[:, :100] = -torch.inf
    ours = sample_tokens(z, temperature=temperature, backend=row.backend, **WHOLE)
    assert ours.entropy is not None
    if temperature < 1:
        assert torch.equal(ours.token_ids, z.argmax(-1))
        assert not ours.log_probs.any()
        assert not ours.entropy.any()
    else:
        assert (ours.token_ids >= 100).all()
        assert ours.log_probs.tolist() == pytest.approx([-math.log(300)] * 3, rel=1e-6)


# ---- draws --------------------------------------------------------------------------------------


def drawn(row: Row, z: Tensor, draws: int, temperature: float, options: dict[str, Any]) -> Tensor:
    many = z.expand(draws, -1)
    return sample_tokens(
        many, temperature=temperature, backend=row.backend, **DRAW, **options
    ).token_ids


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("temperature", [0.1, 1.0, 1.6])
def test_draws_are_from_the_distribution(row: Row, temperature: float, truncation: str) -> None:
    if row.interpreted or row.emulated or row.backend == "torch":
        pytest.skip("too slow for so many draws; they are those of the other rows, as below")
    z = logits(1, 60, spread=3 * min(temperature, 1.0))
    options = TRUNCATIONS[truncation]
    ids = drawn(row, z, 40_000, temperature, options)
    truth = sample_tokens(z.double(), temperature=temperature, **WHOLE, **options)
    x = (z.double() / temperature).squeeze(0)
    if truth.keep is not None:
        x = x.masked_fill(~truth.keep.to_mask(60)[0], -torch.inf)
    counts = ids.bincount(minlength=60)
    p = x.softmax(-1)
    assert chi_square_fits(counts, p)
    assert not chi_square_fits(counts, (x * 0.9).softmax(-1).where(p > 0, 0.0))  # and it can fail


@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_every_row_of_the_table_draws_the_same(row: Row, truncation: str) -> None:
    draws = 30 if row.tiny else 100
    z = logits(1, 60)
    many = drawn(row, z, draws, 1.0, TRUNCATIONS[truncation])
    defined = drawn(ROWS[-1], z.double(), draws, 1.0, TRUNCATIONS[truncation])
    assert many.tolist() == defined.tolist()
    assert len(set(many.tolist())) > 2


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.1, 1.0, 1.6])
@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_draws_from_a_real_vocabulary(temperature: float, truncation: str) -> None:
    z = logits(1, 32_000, spread=2.0)
    options = TRUNCATIONS[truncation]
    ids = drawn(ROWS[2], z, 20_000, temperature, options)
    truth = sample_tokens(z.double(), temperature=temperature, **WHOLE, **options)
    x = (z.double() / temperature).squeeze(0)
    if truth.keep is not None:
        x = x.masked_fill(~truth.keep.to_mask(32_000)[0], -torch.inf)
    assert chi_square_fits(ids.bincount(minlength=32_000), x.softmax(-1))


@pytest.mark.parametrize("options", [{}, {"top_k": 20}, {"top_p": 0.9}])
def test_a_row_is_the_same_in_any_batch(row: Row, options: dict[str, Any]) -> None:
    columns, most = (300, 8) if row.interpreted or row.tiny else (400, 4096)
    if row.emulated or row.backend == "torch":
        most = min(most, 70)
    z = logits(7, columns)
    ids = torch.tensor([3, 2**40, 0, 8, 1, 99, 12])
    alone = sample_tokens(z[:1], row_ids=ids[:1], backend=row.backend, **WHOLE, **options)
    seven = sample_tokens(z, row_ids=ids, backend=row.backend, **WHOLE, **options)
    many = z.repeat(most // 7 + 1, 1).flip(0)[-most:]
    names = ids.repeat(most // 7 + 1).flip(0)[-most:]
    batch = sample_tokens(many, row_ids=names, backend=row.backend, **WHOLE, **options)
    for x, y, b in zip(alone[:3], seven[:3], batch[:3], strict=True):
        assert same(x, y[:1])
        assert same(y, b.flip(0)[:7])
    if options:
        assert lists(seven) == lists(batch)[::-1][:7]


def test_what_a_draw_depends_on(row: Row) -> None:
    z = logits(1, 50, spread=0.1).expand(6, -1)
    first = sample_tokens(z, backend=row.backend, **DRAW).token_ids
    assert len(set(first.tolist())) > 1  # the row
    again = sample_tokens(z, backend=row.backend, row_ids=torch.arange(6), **DRAW).token_ids
    assert torch.equal(first, again)
    held = sample_tokens(z, backend=row.backend, seed=5, step=torch.tensor(2)).token_ids
    assert torch.equal(first, held)
    for other in ({"seed": 6, "step": 2}, {"seed": 5, "step": 3}):
        assert not torch.equal(first, sample_tokens(z, backend=row.backend, **other).token_ids)


def test_greedy(row: Row) -> None:
    z = logits(3, 700)
    z[0, 40] = z[0, 650] = 50.0  # the lower id
    for options in ({}, {"top_k": 5}, {"top_p": 0.5}):
        ours = sample_tokens(z, greedy=True, backend=row.backend, **WHOLE, **options)
        assert ours.token_ids.tolist() == [40, *z[1:].argmax(-1).tolist()]
        truth = sample_tokens(z.double(), greedy=True, **WHOLE, **options)
        assert_within_budget(ours.log_probs, truth.log_probs.float(), truth.log_probs)


# ---- layout -------------------------------------------------------------------------------------


def test_strides_and_padding(row: Row) -> None:
    whole = logits(4, 3, 2, 330).to(torch.float16)
    z = whole.transpose(0, 1)[:, ::2, :, 1:321]
    ours = sample_tokens(z, vocab_size=311, top_k=9, backend=row.backend, **WHOLE)
    packed = z[..., :311].contiguous()
    plain = sample_tokens(packed, top_k=9, backend=row.backend, **WHOLE)
    for x, y in zip(ours[:3], plain[:3], strict=True):
        assert same(x, y)
    assert lists(ours) == lists(plain)
    poisoned = whole.clone()
    poisoned[..., 312:] = math.nan
    z = poisoned.transpose(0, 1)[:, ::2, :, 1:321]
    again = sample_tokens(z, vocab_size=311, top_k=9, backend=row.backend, **WHOLE)
    assert same(again.log_probs, ours.log_probs)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5), (5,), (2, 1)])
def test_small_shapes(row: Row, shape: tuple[int, ...]) -> None:
    ours = sample_tokens(torch.zeros(shape), top_p=0.5, backend=row.backend, **WHOLE)
    assert ours.token_ids.shape == ours.log_probs.shape == shape[:-1]
    assert ours.keep is not None
    assert len(ours.keep.indptr) == math.prod(shape[:-1]) + 1


def test_threads_change_nothing(kernel_row: Row) -> None:
    if kernel_row.backend != "cpu":
        pytest.skip("has no threads of its own")
    z = logits(50, 2000)
    before = torch.get_num_threads()
    samples = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        samples.append(sample_tokens(z, top_p=0.8, backend="cpu", **WHOLE))
    torch.set_num_threads(before)
    assert lists(samples[0]) == lists(samples[1])
    assert all(same(x, y) for x, y in zip(samples[0][:3], samples[1][:3], strict=True))


# ---- bad rows -----------------------------------------------------------------------------------

BAD = [
    (0, {}, math.nan, r"^logits: expected a finite largest value and no NaN, got nan in row 1$"),
    (649, {}, -math.nan, r"^logits: .*got nan in row 1$"),
    (649, {"top_k": 3}, math.inf, r"^logits: .*got inf in row 1$"),
    (slice(None), {"top_p": 0.5}, -math.inf, r"^logits: .*got -inf in row 1$"),
    (
        3,
        {"temperature": [1.0, -2.0, 1.0]},
        0.0,
        r"^temperature: expected finite.*, got -2 in row 1$",
    ),
    (3, {"temperature": [1.0, math.nan, 1.0]}, 0.0, r"^temperature: .*, got nan in row 1$"),
    (3, {"top_k": [1, 0, 1]}, 0.0, r"^top_k: expected values of at least 1, got 0 in row 1$"),
    (3, {"top_p": [0.5, 0.0, 1.0]}, 0.0, r"^top_p: expected values above 0, at most 1, got 0 in"),
    (3, {"min_p": [0.5, 1.5, 1.0]}, 0.0, r"^min_p: expected values in \[0, 1\], got 1.5 in row 1$"),
]


@pytest.mark.parametrize(("at", "options", "value", "message"), BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_bad_row(
    row: Row, at: Any, options: dict[str, Any], value: float, message: str, dtype: torch.dtype
) -> None:
    """Raises where looking is free. Elsewhere it is NaN, draws 0, and harms nobody."""
    z = logits(3, 650).to(dtype)
    z[1, at] = value
    options = {k: torch.tensor(v) if isinstance(v, list) else v for k, v in options.items()}
    if row.reads_values:
        with pytest.raises(ValueError, match=message):
            sample_tokens(z, backend=row.backend, **WHOLE, **options)
        return
    ours = sample_tokens(z, backend=row.backend, **WHOLE, **options)
    assert ours.token_ids[1] == 0
    assert ours.entropy is not None
    assert ours.log_probs.isnan().tolist() == ours.entropy.isnan().tolist() == [False, True, False]
    if ours.keep is not None:
        assert lists(ours)[1] == [0]


# ---- the contract -------------------------------------------------------------------------------

Z = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("z", "options", "error", "message"),
    [
        (Z.int(), {}, TypeError, r"^logits: expected float32 or .*, got int32$"),
        (Z[:, :0], {}, ValueError, r"^logits: expected \[.., V\] with V above 0, got \(2, 0\)$"),
        (Z, {"temperature": 0.0}, ValueError, r"^temperature: expected a finite number above 0"),
        (Z, {"temperature": Z}, ValueError, r"^temperature: expected shape \(2,\), got \(2, 3\)$"),
        (Z, {"top_k": 0}, ValueError, r"^top_k: expected at least 1, got 0$"),
        (Z, {"top_k": 2.0}, TypeError, r"^top_k: expected an int, got float$"),
        (Z, {"top_k": Z[:, 0]}, TypeError, r"^top_k: expected int64 or int32, got float32$"),
        (Z, {"top_p": 1.1}, ValueError, r"^top_p: expected a number above 0, at most 1, got 1.1$"),
        (Z, {"top_p": 0.0}, ValueError, r"^top_p: expected a finite number above 0, got 0.0$"),
        (Z, {"min_p": -0.1}, ValueError, r"^min_p: expected a number in \[0, 1\], got -0.1$"),
        (Z, {"seed": -1}, ValueError, r"^seed: expected at least 0, got -1$"),
        (Z, {"step": torch.tensor(1.0)}, TypeError, r"^step: expected int64, got float32$"),
        (Z, {"row_ids": torch.arange(3)}, ValueError, r"^row_ids: expected shape \(2,\), got"),
        (Z, {"vocab_size": 4}, ValueError, r"^vocab_size: expected at most 3 \(V\), got 4$"),
        (Z, {"backend": "best"}, ValueError, r"^backend: expected one of 'auto', "),
    ],
)
def test_errors_name_the_argument(
    z: Tensor, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sample_tokens(z, **(DRAW | options))


def test_a_named_row_does_not_fall_back() -> None:
    with pytest.raises(BackendError, match=r"cpu: serves float32, bfloat16 and float16 .*float64"):
        sample_tokens(Z.double(), backend="cpu", **DRAW)
    assert sample_tokens(Z.double(), **DRAW).log_probs.dtype == torch.float64


def test_no_gradient() -> None:
    z = logits(2, 9).requires_grad_()
    assert not sample_tokens(z, **DRAW).log_probs.requires_grad
