"""Gradients that the forward makes: who gets them, how often, and what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from logpi import linear_policy_loss
from logpi.core.active_rows import ActiveRows
from logpi.objectives import CISPO, KL, TokenObjective
from logpi.ops.linear_log_probs import _tiles
from logpi.ops.linear_policy_loss import _chunks
from logpi.testing import allocations, assert_all_within_budget, assert_within_budget, nan_empty
from policy_problems import (
    LEAVES,
    OBJECTIVES,
    ROW_BYTES,
    B,
    D,
    Problem,
    T,
    V,
    evaluate,
    in_float64,
    old_log_probs,
    problem,
    room_for,
)
from products import Products

if TYPE_CHECKING:
    from rows import Row

# ---- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_gradcheck_of_the_definition(objective: TokenObjective) -> None:
    p = in_float64(problem())
    p["weight"], p["bias"] = p["weight"][:11], p["bias"][:11]
    p["token_ids"] = p["token_ids"] % 11
    p["old_log_probs"] = old_log_probs(p, {})
    leaves = [p.pop(name).requires_grad_() for name in LEAVES]

    def loss(*leaves: Tensor) -> Tensor:
        named = dict(zip(LEAVES, leaves, strict=True))
        options = {"objective": objective, "kl": KL(0.1), "entropy_coef": 0.1}
        return linear_policy_loss(**p, **named, **options, backend="torch").loss

    if isinstance(objective, CISPO):  # its weight is not differentiated, and a difference would be
        p["old_log_probs"] = torch.full((B, T), -1e3)
    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_upstream_gradient_scales(kernel_row: Row, dtype: torch.dtype) -> None:
    """By a third, which bfloat16 does not hold: it is not rounded before it multiplies."""
    p, third = problem(dtype=dtype), torch.tensor(1 / 3)
    ours = evaluate(p, kernel_row.backend, upstream=float(third))
    for name, whole in evaluate(p, kernel_row.backend).items():
        if name.startswith("gradient"):
            expected = (whole.double() * third.double()).to(dtype)
            assert torch.equal(ours[name], expected), name


def test_a_second_backward_raises(kernel_row: Row) -> None:
    p = problem()
    p["weight"].requires_grad_()
    p.pop("ref_log_probs")
    loss = linear_policy_loss(**p, backend=kernel_row.backend).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"a second backward needs gradients that the first"):
        loss.backward()


def test_a_second_derivative_of_a_kernel_raises(kernel_row: Row) -> None:
    p = problem()
    p["weight"].requires_grad_()
    p.pop("ref_log_probs")
    loss = linear_policy_loss(**p, backend=kernel_row.backend).loss
    with pytest.raises(RuntimeError, match=r"no derivative.*create_graph.*backend='torch'"):
        torch.autograd.grad(loss, p["weight"], create_graph=True)


def test_autograd_takes_the_gradient_as_it_is(kernel_row: Row) -> None:
    """No copy of `[V, D]` between the forward and `weight.grad`."""
    p = problem()
    p["weight"].requires_grad_()
    p.pop("ref_log_probs")
    loss = linear_policy_loss(**p, backend=kernel_row.backend).loss
    with allocations() as sizes:
        loss.backward()
    assert max(sizes, default=0) < p["weight"].numel()


@pytest.mark.parametrize("frozen", LEAVES)
def test_what_is_frozen_gets_none(row: Row, frozen: str) -> None:
    p = problem()
    p.pop("ref_log_probs")
    everything = evaluate(p, row.backend)
    leaves = {k: p[k].requires_grad_() for k in LEAVES if k != frozen}
    linear_policy_loss(**p, backend=row.backend).loss.backward()
    assert p[frozen].grad is None
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad, everything[f"gradient of {name}"])


def test_without_grad_mode(row: Row) -> None:
    p = problem()
    with_grad = evaluate(p, row.backend, kl=KL(0.1))
    with torch.no_grad():
        loss, metrics = linear_policy_loss(**p, kl=KL(0.1), backend=row.backend)
    assert not loss.requires_grad
    for name, value in {"loss": loss, **metrics}.items():
        assert float(value) == pytest.approx(float(with_grad[name]), rel=1e-6), name


def test_no_gradient_flows_elsewhere(row: Row) -> None:
    p = problem()
    for name in ("hidden_states", "old_log_probs", "ref_log_probs", "advantages"):
        p[name].requires_grad_()
    loss, metrics = linear_policy_loss(**p, kl=KL(0.1), backend=row.backend)
    loss.backward()
    assert p["hidden_states"].grad is not None
    assert all(p[k].grad is None for k in ("old_log_probs", "ref_log_probs", "advantages"))
    assert not any(value.requires_grad for value in metrics.values())


def test_a_head_that_is_no_leaf(row: Row) -> None:
    """Tied to an embedding, scaled: autograd goes on behind the op."""
    p = problem()
    p.pop("ref_log_probs")
    expected = evaluate(p, row.backend)["gradient of weight"]
    embedding = p["weight"].clone().requires_grad_()
    linear_policy_loss(**p | {"weight": 1.0 * embedding}, backend=row.backend).loss.backward()
    assert torch.equal(embedding.grad, expected)


@pytest.mark.parametrize("chunk", [None, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weight_grad(kernel_row: Row, dtype: torch.dtype, chunk: int | None) -> None:
    p = problem(dtype=dtype)
    room = room_for(chunk)
    total = torch.full((V, D), 0.5)
    ours = evaluate(p, kernel_row.backend, weight_grad=total, workspace_bytes=room)
    assert ours["gradient of weight"] is None
    yardstick = evaluate(p, "torch")["gradient of weight"].float() + 0.5
    truth = evaluate(in_float64(p), "torch")["gradient of weight"] + 0.5
    assert_within_budget(total, yardstick, truth)


def test_weight_grad_takes_no_other_scale(kernel_row: Row) -> None:
    with pytest.raises(RuntimeError, match=r"upstream gradient of 1, got 0\.5; scale by num_tok"):
        evaluate(problem(), kernel_row.backend, upstream=0.5, weight_grad=torch.zeros(V, D))


def test_autocast(kernel_row: Row) -> None:
    p = problem()
    with torch.autocast("cpu", torch.bfloat16):
        ours = evaluate(p, kernel_row.backend, workspace_bytes=None)
        yardstick = evaluate(p, "torch")
    assert_all_within_budget(ours, yardstick, evaluate(in_float64(p), "torch"))


# ---- what it costs ------------------------------------------------------------------------------


def products(p: Problem, frozen: tuple[str, ...], backend: str, **options: Any) -> Products:
    p = {k: v.clone().requires_grad_(k in LEAVES and k not in frozen) for k, v in p.items()}
    p.pop("ref_log_probs")
    with Products() as counted:
        loss = linear_policy_loss(**p, backend=backend, **options).loss
        if loss.requires_grad:
            loss.backward()
    return counted


def all_active() -> Problem:
    """39 rows, all of which take part in everything."""
    p = problem()
    return p | {"loss_mask": torch.ones(B, T, dtype=torch.bool), "advantages": torch.ones(B, T)}


@pytest.mark.parametrize(
    ("frozen", "expected"),
    [((), 3), (("weight",), 2), (("hidden_states",), 2), (("weight", "hidden_states", "bias"), 1)],
    ids=str,
)
def test_products_of_one_chunk(kernel_row: Row, frozen: tuple[str, ...], expected: int) -> None:
    assert len(products(all_active(), frozen, kernel_row.backend).shapes) == expected


def test_products_of_three_chunks(kernel_row: Row) -> None:
    """The logits of a chunk come in 8 tiles, as in a workspace of that size they do everywhere; its
    gradients are two products."""
    counted = products(all_active(), (), kernel_row.backend, workspace_bytes=room_for(16))
    assert len(counted.shapes) == 3 * (8 + 2)


def test_rows_of_advantage_zero_cost_one_product(kernel_row: Row) -> None:
    p = all_active()
    p["advantages"][1:] = 0.0
    p["loss_mask"][2, 3:] = False
    counted = products(p, (), kernel_row.backend)
    # 13 rows with a gradient and 16 without; logits are made in blocks of 16 rows
    assert counted.flops == 2 * V * D * (16 + 13 + 13 + 16)
    counted = products(p, (), kernel_row.backend, entropy_coef=0.1)
    assert counted.flops == 2 * V * D * (32 + 29 + 29)


def largest(p: Problem, backend: str, **options: Any) -> list[int]:
    """Bytes of the largest tensors of a forward, largest first."""
    p = {k: v.clone().requires_grad_(k in LEAVES) for k, v in p.items() if k != "ref_log_probs"}
    with allocations() as sizes:
        linear_policy_loss(**p, backend=backend, **options).loss.backward()
    return sorted(sizes, reverse=True)


def test_memory(kernel_row: Row) -> None:
    """The logits of a chunk and the gradient of the weight; nothing else is as large."""
    p = problem(dtype=torch.bfloat16)
    p["loss_mask"] = p["advantages"] != 2.0  # all
    weight_bytes, row_bytes = V * D * 2, 1024 * 2
    sizes = largest(p, kernel_row.backend, entropy_coef=0.1)
    assert sizes[:2] == [48 * row_bytes, weight_bytes]  # one chunk: written once, in its dtype
    assert sizes[2] < weight_bytes
    sizes = largest(
        p, kernel_row.backend, entropy_coef=0.1, workspace_bytes=room_for(16, row_bytes)
    )
    assert sizes[:2] == [2 * weight_bytes, weight_bytes]  # it adds up in float32
    assert 16 * row_bytes in sizes
    assert max(sizes[2:]) <= weight_bytes


def test_memory_without_grad_mode(kernel_row: Row) -> None:
    p = problem()
    p.pop("ref_log_probs")
    with torch.no_grad(), allocations() as sizes:
        linear_policy_loss(**p, backend=kernel_row.backend, workspace_bytes=room_for(16))
    assert max(sizes) <= 16 * ROW_BYTES


class _CountedLate(ActiveRows):
    """Rows as on a GPU: all of them, active ones first, until somebody waits for the count."""

    waits = True

    def __init__(self, mask: Tensor, num_rows: int) -> None:
        super().__init__(None, num_rows)
        self.index = mask.logical_not().argsort(stable=True)
        self.mask, self.active = mask[self.index], int(mask.sum())

    def count(self, settle: bool = False) -> int:
        if settle and self.waits:
            self._count = self.active
        return self._count


@pytest.mark.parametrize("waits", [True, False], ids=["counted", "captured"])
@pytest.mark.parametrize("chunk", [3, 16, None])
@pytest.mark.parametrize("rows", ["usual", "none", "worthless"])
def test_rows_that_are_counted_late(
    kernel_row: Row, rows: str, chunk: int | None, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of a GPU, which nothing may make wait while a graph is captured."""
    if kernel_row.tiny:
        pytest.skip(f"{kernel_row}: the order of rows is not the kernels' business")
    p = problem()
    if rows == "none":
        p["loss_mask"][:] = False
    if rows == "worthless":
        p["advantages"][:] = 0.0
    room = room_for(chunk)
    for options in ({}, {"kl": KL(0.1), "entropy_coef": 0.1}):
        options = options | {"backend": kernel_row.backend, "workspace_bytes": room}
        expected = evaluate(p, **options)
        with monkeypatch.context() as patched, nan_empty():
            patched.setattr(_CountedLate, "waits", waits)
            for module in (_chunks, _tiles):
                patched.setattr(module, "ActiveRows", _CountedLate)
            ours = evaluate(p, **options)
        for name, value in expected.items():
            assert torch.allclose(ours[name], value, rtol=1e-5, atol=1e-7), name
