"""flow_balance_loss under autograd and a compiler, and the head that gives it log Z."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch._functorch import config as functorch_config
from torch.autograd import gradcheck, gradgradcheck

from flow_problems import ARGUMENTS, LEAVES, B, T, call, evaluate, in_float64, problem
from logpi import LogPartition, flow_balance_loss
from logpi.testing import bits

if TYPE_CHECKING:
    from rows import Row

FREE = {"clip_ratio_low": 0.0, "clip_ratio_high": 0.0}  # a weight of 1: no step of it is missed


# ---- gradients ----------------------------------------------------------------------------------


def test_the_definition_is_differentiable_twice() -> None:
    p = in_float64(problem(0, rows=3, columns=5))
    leaves = [p[name].requires_grad_() for name in LEAVES]

    def loss(*given: Tensor) -> Tensor:
        return call(p | dict(zip(LEAVES, given, strict=True)), **FREE, backend="torch").loss

    assert gradcheck(loss, leaves)
    assert gradgradcheck(loss, leaves)


def test_no_gradient_flows_through_the_weight() -> None:
    # 2 w delta / (n B) at each token, with w itself a constant.
    p = in_float64(problem(1, rows=1))
    ours = evaluate(p, "torch", upstream=1.0)
    expected = 2 * ours["importance_weight"] * ours["residual"] / p["loss_mask"].sum()
    assert 0.1 < ours["importance_weight"] < 9
    assert ours["gradient of log_probs"][p["loss_mask"]] == pytest.approx(expected.item())


def test_kernels_are_differentiated_once(kernel_row: Row) -> None:
    p = problem(2)
    log_probs = p["log_probs"].requires_grad_()
    loss = call(p, backend=kernel_row.backend).loss
    with pytest.raises(RuntimeError, match=r"create_graph=True asked for one; use backend='torch'"):
        torch.autograd.grad(loss, log_probs, create_graph=True)


def test_a_graph_that_is_kept_can_be_used_again(row: Row) -> None:
    p = problem(3)
    leaves = [p[name].requires_grad_() for name in LEAVES]
    loss = call(p, backend=row.backend).loss
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves, torch.tensor(2.0))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(bits(2 * one), bits(other))


@pytest.mark.parametrize("wanted", LEAVES)
def test_either_gradient_alone(row: Row, wanted: str) -> None:
    p = problem(4)
    both = evaluate(p, row.backend, upstream=1.0)
    leaf = p[wanted].requires_grad_()
    call(p, backend=row.backend).loss.backward()
    assert torch.equal(bits(leaf.grad), bits(both[f"gradient of {wanted}"]))


def test_no_gradient_to_what_is_given(row: Row) -> None:
    p = problem(5)
    given = [p[name].requires_grad_() for name in ("ref_log_probs", "old_log_probs", "rewards")]
    loss = call(p, backend=row.backend).loss
    assert not loss.requires_grad
    p["log_z"].requires_grad_()
    call(p, backend=row.backend).loss.backward()
    assert [leaf.grad for leaf in given] == [None] * 3


def test_with_and_without_a_graph_the_bits_are_the_same(row: Row) -> None:
    p = problem(6)
    ours = evaluate(p, row.backend)
    loss, metrics = call(p, backend=row.backend)
    for name, value in {"loss": loss, **metrics}.items():
        assert torch.equal(bits(value), bits(ours[name])), name


# ---- torch.compile ------------------------------------------------------------------------------


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    with functorch_config.patch(donated_buffer=False):
        yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    "options",
    [{}, {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28}, {"num_sequences": torch.tensor(7)}],
    ids=["default", "paper", "num_sequences"],
)
def test_one_graph_with_the_bits_of_eager(row: Row, options: dict[str, Any]) -> None:
    if row.isa is not None:
        pytest.skip("the compiled graph calls the same op whatever the ISA")

    def run(*tensors: Tensor) -> dict[str, Tensor]:
        leaves = [t.detach().requires_grad_() if i in (0, 4) else t for i, t in enumerate(tensors)]
        loss, metrics = op(*leaves, backend=row.backend, **options)
        grads = torch.autograd.grad(loss, (leaves[0], leaves[4]), torch.tensor(0.7))
        return {"loss": loss, **metrics, "of log_probs": grads[0], "of log_z": grads[1]}

    # Three sizes: the second makes the graph a dynamic one.
    problems = [problem(s, rows=3 + s, columns=11 + s) for s in range(3)]
    op = flow_balance_loss
    eager = [run(*(p[name] for name in ARGUMENTS)) for p in problems]
    op = torch.compile(flow_balance_loss, backend="aot_eager", fullgraph=True)
    for p, expected in zip(problems, eager, strict=True):
        for name, value in run(*(p[name] for name in ARGUMENTS)).items():
            assert torch.equal(bits(value), bits(expected[name])), name


def test_registered_ops_keep_torchs_rules() -> None:
    from logpi.ops.flow_balance import _library
    from logpi.ops.flow_balance.op import check_call

    p = problem(7)
    for number in (None, torch.tensor(3.0, dtype=torch.float64)):
        given = p | {name: p[name].clone().requires_grad_() for name in LEAVES}
        tensors = [given[name] for name in ARGUMENTS]
        checked = check_call(*tensors, 15.0, 10.0, None, None, number)
        args = ("cpu", *checked)
        assert len(args) == _library._ARGUMENTS
        torch.library.opcheck(torch.ops.logpi.flow_balance_loss.default, args)
        with torch.no_grad():
            *_, slopes = torch.ops.logpi.flow_balance_loss(*args)
        backward = ("cpu", p["loss_mask"], slopes, torch.tensor(0.7))
        torch.library.opcheck(torch.ops.logpi.flow_balance_loss_backward.default, backward)


# ---- log Z --------------------------------------------------------------------------------------

D = 6


def test_log_partition_is_the_stack_on_the_mean_of_the_prompt() -> None:
    head = LogPartition(D, num_layers=3).double().eval()
    hidden = torch.randn(B, T, D, dtype=torch.float64)
    mask = torch.rand(B, T) < 0.5
    pooled = torch.stack([hidden[i][mask[i]].mean(0) for i in range(B)])
    linear = [layer for layer in head.net if isinstance(layer, torch.nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linear] == [(D, D), (D, D), (1, D)]
    x = pooled
    for layer in linear[:-1]:
        x = torch.nn.functional.layer_norm(torch.nn.functional.gelu(layer(x)), (D,))
    torch.testing.assert_close(head(hidden, mask), linear[-1](x)[:, 0])


def test_log_partition_pools_the_last_prompt_token() -> None:
    head = LogPartition(D).eval()
    hidden, mask = torch.randn(1, 4, D), torch.ones(1, 4, dtype=torch.bool)
    ours = head(hidden, mask)
    hidden[:, -1] += torch.randn(D)
    assert head(hidden, mask) != ours
    as_released = mask.clone()
    as_released[:, -1] = False
    torch.testing.assert_close(head(hidden, as_released), head(hidden[:, :-1], mask[:, :-1]))


def test_log_partition_never_looks_outside_the_mask() -> None:
    head = LogPartition(D).eval()
    hidden, mask = torch.randn(2, 5, D), torch.zeros(2, 5, dtype=torch.bool)
    mask[0, :3] = True
    ours = head(hidden, mask)
    leaf = hidden.where(mask[..., None], math.nan).requires_grad_()
    again = head(leaf, mask)
    assert torch.equal(again, ours)
    assert torch.equal(again[1], head(torch.zeros(1, 1, D), mask[:1, :1])[0])  # no token: mean 0
    again.sum().backward()
    assert torch.all(leaf.grad[~mask] == 0)
    assert leaf.grad[mask].isfinite().all()
    assert torch.all(leaf.grad[0, :3] != 0)  # into the backbone, as released


def test_log_partition_in_half_precision_and_training() -> None:
    head = LogPartition(D, dropout=0.5).bfloat16()
    hidden, mask = torch.randn(64, 3, D, dtype=torch.bfloat16), torch.ones(64, 3)
    noisy = head(hidden, mask)
    assert noisy.dtype == torch.float32
    assert not torch.equal(noisy, head(hidden, mask))  # dropout is active
    assert torch.equal(head.eval()(hidden, mask), head(hidden, mask))
    # The mean adds up in float32: bf16 would stop at 256.
    long = torch.ones(1, 4096, D, dtype=torch.bfloat16)
    assert torch.equal(head(long, torch.ones(1, 4096)), head(long[:, :1], torch.ones(1, 1)))


def test_log_partition_compiles_to_one_graph() -> None:
    head = LogPartition(D).eval()
    hidden, mask = torch.randn(2, 5, D), torch.ones(2, 5, dtype=torch.bool)
    compiled = torch.compile(head, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(hidden, mask), head(hidden, mask))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogPartition(0), "hidden_size: expected at least 1, got 0"),
        (lambda: LogPartition(4, num_layers=0), "num_layers: expected at least 1, got 0"),
        (lambda: LogPartition(4, dropout=1.0), "dropout: expected a number below 1, got 1.0"),
        (
            lambda: LogPartition(4)(torch.zeros(2, 3, 5), torch.ones(2, 3)),
            r"hidden_states: expected shape \[B, T, 4\], got \(2, 3, 5\)",
        ),
        (
            lambda: LogPartition(4)(torch.zeros(2, 3, 4), torch.ones(2, 4)),
            r"mask: expected shape \(2, 3\), got \(2, 4\)",
        ),
    ],
)
def test_log_partition_refuses(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
