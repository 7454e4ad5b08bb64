"""What linear_log_probs leaves out of its products: masked rows, rows without an upstream gradient,
frozen operands, entries outside the support."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from test_linear_log_probs import ALL, D, N, V, problem, randn, with_bias

from logpi import KeepSet, linear_log_probs, token_log_probs
from logpi.ops.linear_log_probs import _products as products
from logpi.testing import assert_within_budget, bits, nan_empty
from products import Products

if TYPE_CHECKING:
    from rows import Row


def test_nan_in_a_masked_row_leaks_nowhere(row: Row) -> None:  # complaint 12
    hidden, weight, ids = problem()
    mask = torch.arange(N) % 3 != 1
    ids = ids.where(mask, -7)  # nor are its ids looked at
    clean = hidden.where(mask[:, None], 0.0)
    results = []
    for rows in (clean, hidden.where(mask[:, None], torch.nan)):
        leaves = rows.clone().requires_grad_(), weight.clone().requires_grad_()
        out = linear_log_probs(*leaves, ids, loss_mask=mask, backend=row.backend, **ALL)
        loss = out.log_probs.sum() + 0.1 * out.entropy.sum()
        results.append((*out, *torch.autograd.grad(loss, leaves)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(bits(one), bits(other))
        assert not one.isnan().any()
    for field in (*results[1][:6], results[1][6]):
        assert not field[~mask].any()  # exactly 0


def test_nan_in_a_row_stays_in_it(row: Row) -> None:
    hidden, weight, ids = problem()
    hidden[5, 3] = torch.nan
    out = linear_log_probs(hidden, weight, ids, backend=row.backend, **ALL)
    for name in ("log_probs", "entropy", "collision", "lse", "mean_logit"):
        assert getattr(out, name).isnan().nonzero().flatten().tolist() == [5], name


def test_masked_rows_are_in_no_product(kernel_row: Row) -> None:
    hidden, weight, ids = problem()
    mask = torch.arange(N) % 3 != 1
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    with Products() as products:
        out = linear_log_probs(*leaves, ids, loss_mask=mask, backend=kernel_row.backend)
        torch.autograd.grad(out.log_probs.sum(), leaves)
    active = int(mask.sum())
    assert active % 16 == 0  # so that nothing is padded
    assert {min(p) for p in products.shapes} == {D}
    assert products.flops == 4 * 2 * active * V * D


def test_rows_without_upstream_gradient_are_in_no_product_of_the_backward(kernel_row: Row) -> None:
    hidden, weight, ids = problem()
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    upstream = randn(N, seed=6).where(torch.arange(N) % 2 == 0, 0.0)
    for retain in (0, 1 << 30):
        out = linear_log_probs(*leaves, ids, retain_bytes=retain, backend=kernel_row.backend)
        with Products() as products:
            grads = torch.autograd.grad(out.log_probs, leaves, upstream)
        assert products.flops == (2 if retain else 3) * 2 * (N // 2) * V * D
        dense = token_log_probs(hidden @ weight.T, ids, backend="torch")
        expected = torch.autograd.grad(dense.log_probs, leaves, upstream)
        for one, other in zip(grads, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert not grads[0][1::2].any()


def test_no_upstream_gradient_at_all(kernel_row: Row) -> None:
    hidden, weight, ids = problem()
    leaves = hidden.requires_grad_(), weight.requires_grad_(), randn(V).requires_grad_()
    with nan_empty(), Products() as products:
        out = with_bias(*leaves, ids, backend=kernel_row.backend)
        before = products.flops
        grads = torch.autograd.grad(out.log_probs, leaves, torch.zeros(N))
    assert products.flops == before
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize(
    ("frozen", "products_wanted"), [("", 4), ("weight", 3), ("hidden", 3), ("both", 1)]
)
def test_a_frozen_operand_skips_its_product(
    kernel_row: Row, frozen: str, products_wanted: int
) -> None:
    hidden, weight, ids = problem()
    hidden.requires_grad_(frozen not in ("hidden", "both"))
    weight.requires_grad_(frozen not in ("weight", "both"))
    bias = randn(V).requires_grad_()
    with Products() as products:
        out = with_bias(hidden, weight, bias, ids, backend=kernel_row.backend)
        out.log_probs.sum().backward()
    assert products.flops == (products_wanted + (frozen == "both")) * 2 * N * V * D
    assert bias.grad is not None
    assert (hidden.grad is None, weight.grad is None) == (
        frozen in ("hidden", "both"),
        frozen in ("weight", "both"),
    )


def test_retaining_all_logits_saves_a_product(kernel_row: Row) -> None:
    hidden, weight, ids = problem()
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    with Products() as products:
        out = linear_log_probs(*leaves, ids, retain_bytes=N * V * 4, backend=kernel_row.backend)
        torch.autograd.grad(out.log_probs.sum(), leaves)
    assert products.flops == 3 * 2 * N * V * D


def test_a_slice_multiplies_its_rows_of_the_weight_alone(kernel_row: Row) -> None:
    hidden, weight, ids = problem()
    weight = weight.where(
        (torch.arange(V)[:, None] >= 40) & (torch.arange(V)[:, None] < 104), torch.nan
    )
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    with Products() as products:
        out = linear_log_probs(
            *leaves, ids.clamp(40, 103), support=slice(40, 104), backend=kernel_row.backend
        )
        grads = torch.autograd.grad(out.log_probs.sum(), leaves)
    assert products.flops == 4 * 2 * N * 64 * D
    assert not any(grad.isnan().any() for grad in grads)
    assert not grads[1][:40].any()
    assert not grads[1][104:].any()


def test_few_kept_ids_read_their_rows_of_the_weight_alone(kernel_row: Row) -> None:
    hidden, weight, ids = problem()
    kept = torch.zeros(N, V, dtype=torch.bool)
    kept[torch.arange(N), ids] = True
    kept[:, 7] = True
    unused = ~kept.any(0)
    weight = weight.masked_fill(unused[:, None], torch.nan)
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    with Products() as products:
        out = linear_log_probs(
            *leaves, ids, support=KeepSet.from_mask(kept), backend=kernel_row.backend
        )
        grads = torch.autograd.grad(out.log_probs.sum(), leaves)
    assert products.flops == 0
    assert not any(grad.isnan().any() for grad in grads)
    assert not grads[1][unused].any()


@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
def test_a_float32_product_of_several_parts(biased: bool) -> None:
    # A CPU multiplies 1024 columns at a time: two whole parts and a rest, in a wider tile.
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(5, 24, generator=draw), torch.randn(2500, 24, generator=draw)
    bias = torch.randn(2500, generator=draw) if biased else None
    tile = torch.full((5, 2600), torch.nan)
    products.logits_into(tile[:, :2500], x, weight, bias)
    whole = torch.nn.functional.linear(x, weight, bias)
    true = torch.nn.functional.linear(*(t if t is None else t.double() for t in (x, weight, bias)))
    assert_within_budget(tile[:, :2500], whole, true, name="logits")
    assert tile[:, 2500:].isnan().all()


def test_a_second_derivative_of_a_kernel_raises() -> None:
    hidden = torch.randn(3, 8, requires_grad=True)
    out = linear_log_probs(hidden, torch.randn(11, 8), torch.arange(3), backend="cpu")
    with pytest.raises(RuntimeError, match=r"no derivative.*create_graph.*backend='torch'"):
        torch.autograd.grad(out.log_probs, hidden, torch.randn(3), create_graph=True)
