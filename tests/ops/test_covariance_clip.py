"""The covariance rules: the paper's vectors, the definition by hand, rows alike, every error."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from covariance_problems import KINDS, cut, exact_mean, problem, selected_by_hand
from logpi import (
    BackendError,
    CovarianceSelection,
    clip_cov_mask,
    covariances,
    kl_cov_mask,
)
from logpi.ops.covariance_clip import reference
from logpi.testing import assert_within_budget, bits, nan_empty

if TYPE_CHECKING:
    from rows import Row

SIZES = (1, 2, 17, 1023, 1024, 1025, 4500)


@pytest.fixture(autouse=True)
def _many_limbs_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes a millisecond an operation, however long."""
    from logpi.core import triton_row

    if triton_row.INTERPRETED:
        from logpi.ops.covariance_clip import _triton

        monkeypatch.setattr(_triton, "SOME", _triton.TILE)


def sizes(row: Row) -> tuple[int, ...]:
    return (17, 1025) if row.tiny else SIZES


# ---- the papers ---------------------------------------------------------------------------------

OLD = torch.tensor([[-0.5, -1.0, -2.0, -0.1], [-0.7, -3.0, -0.2, -0.4]], dtype=torch.float64)
NEW = torch.tensor([[-0.4, -1.3, -1.2, -0.1], [-0.9, -2.0, -0.2, -9.0]], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
ADVANTAGES = torch.tensor([[2.0], [-2.0]], dtype=torch.float64).expand(2, 4)
VALID = MASK.bool()


def doubles(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_covariances_of_the_official_code() -> None:
    c = covariances(NEW, ADVANTAGES, MASK, backend="torch")
    expected = [0.80816, -0.73469, -0.56327, 1.32245, 0.06531, 2.57959, -1.53469]
    torch.testing.assert_close(c[VALID], doubles(expected), atol=6e-6, rtol=0)
    means = ADVANTAGES[VALID].mean(), NEW[VALID].mean()
    assert means == pytest.approx((0.2857142853, -0.8714285702), abs=1e-8)  # theirs add 1e-8 to N
    assert c[1, 3] == 0


@pytest.mark.parametrize("fraction", [0.3, 0.002])
def test_kl_cov_of_the_official_code(fraction: float) -> None:
    taken = kl_cov_mask(NEW, ADVANTAGES, MASK, fraction=fraction, backend="torch")
    assert taken.nonzero().tolist() == ([[0, 3], [1, 1]] if fraction == 0.3 else [[1, 1]])
    new = NEW.clone().requires_grad_()
    losses = -ADVANTAGES * (new - OLD).exp() + (new - OLD).abs() * taken
    loss = losses[VALID].sum() / 7
    (grad,) = torch.autograd.grad(loss, new)
    expected = [-0.31576312, -0.21166235, -0.63586884, -0.28571429]
    expected += [0.23392307, 0.91950909, 0.28571429]
    assert loss.item() == pytest.approx(-0.0098621388, abs=1e-10)
    torch.testing.assert_close(grad[VALID], doubles(expected), atol=1e-8, rtol=0)
    of_sequences = losses.where(VALID, 0.0).sum(-1).mean()
    assert of_sequences.item() == pytest.approx(-0.0345174857, abs=1e-10)


def test_clip_cov_of_the_official_code() -> None:
    new = NEW.clone().requires_grad_()
    ratio = (new - OLD).exp()
    one, other = -ADVANTAGES * ratio, -ADVANTAGES * ratio.clamp(0.8, 1.2)
    dropped = clip_cov_mask(
        new, ADVANTAGES, MASK, fraction=0.3, exclude=(other > one) & VALID, backend="torch"
    )
    assert dropped.nonzero().tolist() == [[0, 3], [1, 1]]
    loss = (torch.maximum(one, other) * ~dropped)[VALID].sum() / 7  # the dropped stay in the 7
    (grad,) = torch.autograd.grad(loss, new)
    expected = [-0.31576312, -0.21166235, 0.0, 0.0, 0.23392307, 0.0, 0.28571429]
    assert loss.item() == pytest.approx(-0.3506452526, abs=1e-8)
    torch.testing.assert_close(grad[VALID], doubles(expected), atol=1e-8, rtol=0)


def test_the_vectors_in_float32(row: Row) -> None:
    tensors = NEW.float(), ADVANTAGES.float(), MASK
    kl = kl_cov_mask(*tensors, fraction=0.3, backend=row.backend)
    clip = clip_cov_mask(*tensors, fraction=0.3, backend=row.backend)
    assert kl.nonzero().tolist() == clip.nonzero().tolist() == [[0, 3], [1, 1]]


# ---- rows agree ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_has_the_bits_of_the_definition(kernel_row: Row, kind: str) -> None:
    for size in sizes(kernel_row):
        log_probs, advantages, mask, exclude = problem(size, kind, seed=size)
        args, row = (log_probs, advantages, mask), kernel_row.backend
        with nan_empty():
            c = covariances(*args, backend=row)
        assert torch.equal(
            bits(c.nan_to_num(1e9)), bits(covariances(*args, backend="torch").nan_to_num(1e9))
        )
        assert (c[~mask] == 0).all()
        for fraction in (0.002, 0.3) if kernel_row.tiny else (1e-9, 0.002, 0.1, 0.7, 1.0):
            step = torch.tensor(2**33 + size)
            options: dict[str, Any] = {"lower": -0.5, "upper": 1.1, "exclude": exclude}
            options |= {"seed": 2**40 + 7, "step": step, "fraction": fraction}
            with nan_empty():
                clip = clip_cov_mask(*args, **options, backend=row)
                kl = kl_cov_mask(*args, fraction=fraction, backend=row)
            options |= {"step": int(step), "backend": "torch"}
            assert torch.equal(clip, clip_cov_mask(*args, **options)), (size, fraction)
            assert torch.equal(kl, kl_cov_mask(*args, fraction=fraction, backend="torch"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_definition_by_hand(kind: str) -> None:
    log_probs, advantages, mask, exclude = problem(300, kind)
    args = (log_probs, advantages, mask)
    c = covariances(*args, backend="torch")
    if kind not in ("nan", "inf"):
        for x in (log_probs, advantages):
            assert reference.mean(x, mask) == torch.tensor(exact_mean(x, mask)).float()
    for fraction in (0.002, 0.1, 1.0):
        kl = kl_cov_mask(*args, fraction=fraction, backend="torch")
        assert set(kl.nonzero()[:, 0].tolist()) == selected_by_hand(c, mask, fraction)
        clip = clip_cov_mask(*args, fraction=fraction, lower=0.5, exclude=exclude, backend="torch")
        candidates = (c > 0.5) & (c < 5) & mask & ~exclude
        wanted = max(1, math.floor(int(mask.sum()) * fraction))
        assert clip.sum() == min(wanted, int(candidates.sum()))
        assert not (clip & ~candidates).any()


def test_within_budget(kernel_row: Row) -> None:
    for seed in range(1 if kernel_row.tiny else 5):
        tensors = problem(900, seed=seed)[:3]
        ours = covariances(*tensors, backend=kernel_row.backend)
        wide = [x.double() for x in tensors[:2]]
        truth = covariances(*wide, tensors[2], backend="torch")
        log_probs, advantages, mask = tensors
        theirs = (advantages - advantages[mask].mean()) * (log_probs - log_probs[mask].mean())
        assert_within_budget(ours, theirs.where(mask, 0.0), truth)


@pytest.mark.parametrize("scale", [1e-42, 1e-20, 1.0, 1e5, 1e30], ids=str)
def test_sums_are_exact_at_any_scale(kernel_row: Row, scale: float) -> None:
    """What a row sums quickly and what it sums slowly are both exact."""
    _, advantages, mask, _ = problem(1500)
    x = (advantages * scale).contiguous()
    ones = torch.ones_like(x)
    ones[~mask] = 7.0
    ones[mask.nonzero()[0]] = 2.0  # c is not 0 everywhere
    ours, order = covariances(x, ones, mask, backend=kernel_row.backend), torch.randperm(1500)
    shuffled = covariances(x[order], ones[order], mask[order], backend=kernel_row.backend)
    assert torch.equal(ours[order], shuffled)
    assert torch.equal(ours, covariances(x, ones, mask, backend="torch"))


@pytest.mark.parametrize("exponent", [-57, -56, -55, -36, -35, 8, 9, 10])
def test_sums_at_the_ends_of_what_a_tile_holds(kernel_row: Row, exponent: int) -> None:
    """Values at the limits of csrc/covariance_clip/tile_sum.h, of which no bit may be lost."""
    value = torch.tensor(2.0**exponent).nextafter(torch.tensor(torch.inf))
    mask = torch.ones(2048, dtype=torch.bool)
    other = (torch.arange(2048) % 3 == 0).float()
    alone = torch.zeros(2048)
    alone[77] = value
    among = torch.full((2048,), -(2.0**9 - 2**-15))  # all of one sign: the largest sum
    among[1::2] = value
    for x in (alone, among, -among):
        ours = covariances(x, other, mask, backend=kernel_row.backend)
        assert torch.equal(ours, covariances(x, other, mask, backend="torch"))


def test_equal_advantages_have_no_covariance(row: Row) -> None:
    log_probs, advantages, mask, _ = problem(700, "equal")
    args = (log_probs, advantages, mask)
    assert (covariances(*args, backend=row.backend) == 0).all()
    assert not clip_cov_mask(*args, backend=row.backend).any()
    taken = kl_cov_mask(*args, fraction=0.01, backend=row.backend)
    assert taken.nonzero()[:, 0].tolist() == mask.nonzero()[: taken.sum(), 0].tolist()  # the first


# ---- edges --------------------------------------------------------------------------------------


def test_no_token_and_one_token(row: Row) -> None:
    for shape in ((0,), (2, 0), (2, 3), ()):
        x, none = torch.ones(shape), torch.zeros(shape, dtype=torch.bool)
        for op in (clip_cov_mask, kl_cov_mask):
            out = op(x, x, none, backend=row.backend)
            assert (out.shape, out.dtype, bool(out.any())) == (shape, torch.bool, False)
        assert covariances(x, x, none, backend=row.backend).tolist() == torch.zeros(shape).tolist()
    one = torch.tensor([False, True])
    values = torch.tensor([torch.nan, -3.0])
    assert covariances(values, values, one, backend=row.backend).tolist() == [0, 0]
    assert kl_cov_mask(values, values, one, backend=row.backend).tolist() == [False, True]
    assert not clip_cov_mask(values, values, one, backend=row.backend).any()


def test_masked_values_are_not_looked_at(row: Row) -> None:
    log_probs, advantages, mask, _ = problem(300, "masked nan")
    clean = log_probs.where(mask, 0.0), advantages.where(mask, 0.0)
    for op in (covariances, kl_cov_mask, clip_cov_mask):
        ours = op(log_probs, advantages, mask, backend=row.backend)
        assert torch.equal(ours, op(*clean, mask, backend=row.backend))


def test_bounds_are_exclusive(row: Row) -> None:
    """c of (1, 1, -1, -1) against itself times 1, 2: 1 and 2 exactly."""
    sign = torch.tensor([1.0, 1.0, -1.0, -1.0])
    mask = torch.ones(4, dtype=torch.bool)
    for scale, expected in ((1.0, 0), (1.0 + 2**-23, 4), (2.0, 0), (2.0 - 2**-22, 4)):
        out = clip_cov_mask(
            sign, sign * scale, mask, fraction=1.0, lower=1.0, upper=2.0, backend=row.backend
        )
        assert out.sum() == expected, scale


def test_dtypes_and_layouts(row: Row) -> None:
    log_probs, advantages, mask, exclude = (x.view(30, 10) for x in problem(300))
    options: dict[str, Any] = {"fraction": 0.05, "lower": 0.1, "backend": row.backend}
    expected = clip_cov_mask(log_probs, advantages, mask, exclude=exclude, **options)
    strided = [x.t().contiguous().t() for x in (log_probs, advantages, mask, exclude)]
    assert torch.equal(clip_cov_mask(*strided[:3], exclude=strided[3], **options), expected)
    numbers = mask.long(), exclude.float()
    assert torch.equal(
        clip_cov_mask(log_probs, advantages, numbers[0], exclude=numbers[1], **options), expected
    )
    half = log_probs.bfloat16(), advantages.half()
    widened = half[0].float(), half[1].float()
    c = covariances(*half, mask, backend=row.backend)
    assert c.dtype == torch.float32
    assert torch.equal(c, covariances(*widened, mask, backend=row.backend))


def test_nothing_carries_a_gradient(row: Row) -> None:
    log_probs, advantages, mask, _ = problem(50)
    for op in (covariances, kl_cov_mask, clip_cov_mask):
        out = op(log_probs.requires_grad_(), advantages, mask, backend=row.backend)
        assert not out.requires_grad


# ---- the draw -----------------------------------------------------------------------------------


def test_another_seed_or_step_is_another_draw(row: Row) -> None:
    log_probs, advantages, mask, _ = problem(900)
    options: dict[str, Any] = {"fraction": 0.02, "lower": -9.0, "upper": 9.0}
    options["backend"] = row.backend

    def draw(seed: int, step: int | Tensor) -> Tensor:
        return clip_cov_mask(log_probs, advantages, mask, seed=seed, step=step, **options)

    first = draw(0, 0)
    assert torch.equal(first, draw(0, torch.tensor(0)))
    for other in (draw(1, 0), draw(0, 1), draw(2**32, 0), draw(0, 2**32)):
        assert other.sum() == first.sum()
        assert not torch.equal(other, first)


def test_the_draw_is_uniform(row: Row) -> None:
    if row.tiny:
        pytest.skip("a thousand draws")
    x = torch.tensor([1.0, -1.0]).repeat(16)
    mask = torch.ones(32, dtype=torch.bool)
    counts = torch.zeros(32)
    draws = 200 if row.backend in ("cuda", "torch") else 1000
    for step in range(draws):
        taken = clip_cov_mask(x, 2 * x, mask, fraction=0.25, step=step, backend=row.backend)
        assert taken.sum() == 8
        counts += taken
    expected = draws / 4
    chi_square = ((counts - expected) ** 2 / (expected * 0.75)).sum()
    assert 9 < chi_square < 62  # 31 degrees of freedom: 1e-5 and 1 - 1e-3


def test_padding_does_not_show(row: Row) -> None:
    """A token's key is its place among the valid ones."""
    log_probs, advantages, mask, exclude = problem(400)
    options: dict[str, Any] = {"fraction": 0.1, "lower": 0.0, "backend": row.backend}
    args = (log_probs, advantages, mask)
    packed = [x[mask] for x in args]
    clip = clip_cov_mask(*args, exclude=exclude, **options)[mask]
    assert torch.equal(clip, clip_cov_mask(*packed, exclude=exclude[mask], **options))


@pytest.mark.parametrize("kind", ["plain", "few values", "nan"])
def test_micro_batches_do_not_show(row: Row, kind: str) -> None:
    tensors = problem(2100, kind)
    whole = tensors[:3]
    parts = cut(tensors, (1, 700, 0, 1399))
    selection = CovarianceSelection(backend=row.backend)
    for at, (log_probs, advantages, mask, exclude) in enumerate(parts):
        if at == 0:
            exclude = None if not exclude.any() else exclude
        shape = (7, 100) if at == 1 else log_probs.shape
        shaped = [x.view(shape) for x in (log_probs, advantages, mask)]
        selection.add(*shaped, exclude=None if exclude is None else exclude.view(shape))
    options = {"fraction": 0.01, "lower": 0.0, "step": 3}
    masks = selection.clip_cov_masks(**options)
    assert masks[1].shape == (7, 100)
    expected = clip_cov_mask(*whole, exclude=tensors[3], backend=row.backend, **options)
    assert torch.equal(torch.cat([mask.flatten() for mask in masks]), expected)
    masks = selection.kl_cov_masks(fraction=0.01)
    expected = kl_cov_mask(*whole, fraction=0.01, backend=row.backend)
    assert torch.equal(torch.cat([mask.flatten() for mask in masks]), expected)


def test_threads_do_not_show() -> None:
    tensors = problem(40_000)[:3]  # more than a thread takes alone
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        kl = kl_cov_mask(*tensors, backend="cpu")
        found.append((kl, clip_cov_mask(*tensors, backend="cpu"), covariances(*tensors)))
    torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))
    assert torch.equal(found[0][0], kl_cov_mask(*tensors, backend="torch"))
    assert torch.equal(found[0][1], clip_cov_mask(*tensors, backend="torch"))


# ---- errors -------------------------------------------------------------------------------------

X, M = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"log_probs": [0.0]}, TypeError, r"log_probs: expected a torch\.Tensor, got list"),
        ({"log_probs": X.long()}, TypeError, "log_probs: expected float32 or .* got int64"),
        ({"advantages": X[0]}, ValueError, r"advantages: expected shape \(2, 3\), got \(3,\)"),
        ({"advantages": X.long()}, TypeError, "advantages: expected float32 .* got int64"),
        ({"loss_mask": M[:, :2]}, ValueError, r"loss_mask: expected shape \(2, 3\), got \(2, 2\)"),
        (
            {"loss_mask": M.to("meta")},
            ValueError,
            "loss_mask: expected a tensor on cpu, got",
        ),
        ({"loss_mask": None}, TypeError, r"loss_mask: expected a torch\.Tensor, got NoneType"),
        ({"exclude": M[0]}, ValueError, r"exclude: expected shape \(2, 3\), got \(3,\)"),
        ({"fraction": 0.0}, ValueError, "fraction: expected a number above 0, at most 1, got 0.0"),
        ({"fraction": 2}, ValueError, "fraction: expected a number above 0, at most 1, got 2"),
        ({"fraction": math.nan}, ValueError, "fraction: expected a finite number, got nan"),
        ({"lower": 5.0}, ValueError, r"upper: expected a number above lower, 5\.0, got 5\.0"),
        ({"seed": -1}, ValueError, "seed: expected at least 0, got -1"),
        ({"seed": 0.5}, TypeError, "seed: expected an int, got float"),
        ({"step": 2**63}, ValueError, r"step: expected at most 2\^63 - 1"),
        ({"step": torch.zeros(1).long()}, ValueError, r"step: expected shape \(\), got \(1,\)"),
        ({"step": torch.tensor(0.0)}, TypeError, "step: expected int64, got float32"),
        ({"backend": "gpu"}, ValueError, "backend: expected one of 'auto', 'cuda'"),
    ],
)
def test_errors_name_the_argument(changes: dict[str, Any], error: Any, message: str) -> None:
    arguments: dict[str, Any] = {"log_probs": X, "advantages": X, "loss_mask": M}
    with pytest.raises(error, match=message):
        clip_cov_mask(**arguments | changes)


def test_float64_is_the_definitions(row: Row) -> None:
    if row.backend == "torch":
        assert covariances(X.double(), X, M, backend="torch").dtype == torch.float64
        return
    with pytest.raises(BackendError, match="serves float32, got float64"):
        covariances(X.double(), X, M, backend=row.backend)


def test_a_selection_of_nothing() -> None:
    with pytest.raises(ValueError, match=r"CovarianceSelection: expected at least one add"):
        CovarianceSelection().kl_cov_masks()
    with pytest.raises(ValueError, match="advantages: expected shape"):
        CovarianceSelection().add(X, X[0], M)
