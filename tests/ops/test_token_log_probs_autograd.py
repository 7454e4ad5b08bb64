"""Gradients: who may write where, how often one may ask, and what a compiler makes of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from logpi import KeepSet, token_log_probs
from logpi.ops.token_log_probs.op import check_call
from logpi.testing import (
    DTYPES,
    assert_all_within_budget,
    bits,
    nan_empty,
    outputs_and_gradients,
)

if TYPE_CHECKING:
    from rows import Row

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
V = 4999  # prime; more than one 8 kB chunk in every dtype


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def randint(below: int, *shape: int) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(1))


def option_sets(columns: int, num_rows: int) -> dict[str, dict[str, Any]]:
    """One of each thing that changes the backward, for logits `[num_rows, columns]`."""
    generator = torch.Generator().manual_seed(2)
    kept = torch.rand(num_rows, columns - 2, generator=generator) < 0.6
    kept[:, 1:3] = True
    everything = {
        "support": KeepSet.from_mask(kept),
        "vocab_size": columns - 2,
        "temperature": 0.5 + torch.rand(num_rows, generator=generator),
        "loss_mask": torch.arange(num_rows) % 3 != 1,
        "softcap": 2.0,
        "logit_scale": 1.5,
    }
    return {
        "plain": {},
        "temperature": {"temperature": 0.7},
        **{name: {name: value} for name, value in everything.items() if name != "temperature"},
        "temperatures": {"temperature": everything["temperature"]},
        "slice": {"support": slice(1, columns - 2)},
        "everything": everything,
    }


# ---- in place -----------------------------------------------------------------------------------


@by_dtype
@pytest.mark.parametrize("option", option_sets(V, 4))
def test_in_place_equals_fresh(kernel_row: Row, option: str, dtype: torch.dtype) -> None:
    compare_in_place_with_fresh(kernel_row, 4, option_sets(V, 4)[option], dtype)


@by_dtype
@pytest.mark.parametrize("option", ["plain", "slice", "support", "softcap", "everything"])
def test_in_place_equals_a_large_fresh_gradient(
    kernel_row: Row, option: str, dtype: torch.dtype
) -> None:
    # 12 MB and more: a gradient of that size is written past the caches, one in place never is.
    # V is odd, so the rows begin at every alignment.
    if kernel_row.tiny:
        pytest.skip(f"{kernel_row}: takes minutes, and has no such path")
    compare_in_place_with_fresh(kernel_row, 1201, option_sets(V, 1201)[option], dtype)


def compare_in_place_with_fresh(
    row: Row, num_rows: int, options: dict[str, Any], dtype: torch.dtype
) -> None:
    options = options | {"backend": row.backend, "return_entropy": True}
    ids, upstream = randint(V - 5, num_rows, 2), [randn(num_rows, 2), randn(num_rows)]
    values = 3 * randn(num_rows, V, dtype=dtype)
    fresh_leaf = values.clone().requires_grad_()
    out = token_log_probs(fresh_leaf, ids, **options)
    with nan_empty():
        (fresh,) = torch.autograd.grad(out[:2], fresh_leaf, upstream)
    leaf = values.clone().requires_grad_()
    out = token_log_probs(leaf, ids, inplace_backward=True, **options)
    (grad,) = torch.autograd.grad(out[:2], leaf, upstream)
    assert grad.untyped_storage().data_ptr() == leaf.untyped_storage().data_ptr()
    assert torch.equal(bits(grad), bits(fresh))
    assert torch.equal(fresh_leaf, values)  # and fresh left the logits alone


def test_in_place_under_a_model(kernel_row: Row) -> None:
    # The logits of a real model are not a leaf; their gradient goes on to the head's weight.
    hidden, ids, upstream = randn(6, 8), randint(11, 6), randn(6)
    grads = []
    for in_place in (False, True):
        weight = randn(11, 8, seed=4).requires_grad_()
        logits = hidden @ weight.T
        out = token_log_probs(logits, ids, inplace_backward=in_place, backend=kernel_row.backend)
        out.log_probs.backward(upstream)
        grads.append(weight.grad)
    assert torch.equal(*grads)


def test_in_place_cannot_run_twice(kernel_row: Row) -> None:
    logits = randn(3, 11).requires_grad_() * 1
    out = token_log_probs(logits, randint(11, 3), inplace_backward=True, backend=kernel_row.backend)
    out.log_probs.backward(randn(3), retain_graph=True)
    with pytest.raises(RuntimeError, match=r"a second backward needs the logits.*inplace_backward"):
        out.log_probs.backward(randn(3))


def test_in_place_refuses_logits_that_overlap(kernel_row: Row) -> None:
    # One memory cell for many rows has no place for their gradients.
    logits = randn(1, 11).expand(3, 11).requires_grad_()
    with pytest.raises(ValueError, match=r"inplace_backward: .*rows do not share memory"):
        token_log_probs(logits, randint(11, 3), inplace_backward=True, backend=kernel_row.backend)


def test_in_place_without_a_gradient_writes_nothing(kernel_row: Row) -> None:
    logits = randn(3, 11)
    before = logits.clone()
    token_log_probs(logits, randint(11, 3), inplace_backward=True, backend=kernel_row.backend)
    assert torch.equal(logits, before)


# ---- what autograd is owed ----------------------------------------------------------------------


def test_logits_changed_before_the_backward_raise(row: Row) -> None:
    logits = randn(3, 11).requires_grad_() * 1
    out = token_log_probs(logits, randint(11, 3), backend=row.backend)
    if row.backend == "torch":
        pytest.skip("torch: the definition saves no logits, so nothing is lost")
    logits.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.log_probs.backward(randn(3))


def test_a_second_derivative_of_a_kernel_raises(kernel_row: Row) -> None:
    # The upstream gradient depends on nothing: autograd's own once_differentiable let it be lost.
    logits = randn(3, 11).requires_grad_()
    out = token_log_probs(logits, randint(11, 3), backend=kernel_row.backend)
    with pytest.raises(RuntimeError, match=r"no derivative.*create_graph.*backend='torch'"):
        torch.autograd.grad(out.log_probs, logits, randn(3), create_graph=True)


def test_two_calls_on_the_same_logits_add_up(row: Row) -> None:
    logits, upstream = randn(3, 11).requires_grad_(), randn(3)
    separately = torch.zeros(3, 11)
    for ids in (randint(11, 3), torch.tensor([0, 1, 2])):
        log_probs = token_log_probs(logits, ids, backend=row.backend).log_probs
        log_probs.backward(upstream)
        leaf = logits.detach().requires_grad_()
        alone = token_log_probs(leaf, ids, backend=row.backend).log_probs
        separately += torch.autograd.grad(alone, leaf, upstream)[0]
    assert torch.equal(logits.grad, separately)


def test_saved_tensors_may_be_moved(row: Row) -> None:
    # What activation offloading does: the saved tensors come back as copies.
    logits, ids, upstream = randn(3, V).requires_grad_(), randint(V, 3), [randn(3), randn(3)]
    grads = []
    for pack in (lambda t: t, lambda t: t.clone()):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = token_log_probs(logits, ids, return_entropy=True, backend=row.backend)
        grads.append(torch.autograd.grad(out[:2], logits, upstream)[0])
    assert torch.equal(*grads)


def test_checkpointing(row: Row) -> None:
    logits, ids, upstream = randn(3, V).requires_grad_(), randint(V, 3), randn(3)

    def run(x: Tensor) -> Tensor:
        return token_log_probs(x, ids, backend=row.backend).log_probs

    (expected,) = torch.autograd.grad(run(logits), logits, upstream)
    again = torch.utils.checkpoint.checkpoint(run, logits, use_reentrant=False)
    (ours,) = torch.autograd.grad(again, logits, upstream)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("option", option_sets(6, 3))  # finite differences: every element counts
def test_gradcheck_of_the_definition(option: str) -> None:
    options = option_sets(6, 3)[option]
    ids = torch.tensor([[1, 2], [2, 2], [2, 1]])  # in every support: -inf has no differences
    logits = (2 * randn(3, 6).double()).requires_grad_()

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        return token_log_probs(x, ids, return_entropy=True, backend="torch", **options)[:2]

    assert gradcheck(run, (logits,))
    assert gradgradcheck(run, (logits,))


# ---- under a compiler ---------------------------------------------------------------------------


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@by_dtype
@pytest.mark.parametrize("option", option_sets(19, 4))
def test_compiled_equals_eager(row: Row, option: str, dtype: torch.dtype) -> None:
    options = option_sets(19, 4)[option] | {"backend": row.backend}
    fields = {f"return_{name}": True for name in ("entropy", "collision", "lse", "mean_logit")}
    logits, ids = randn(4, 19, dtype=dtype), randint(14, 4, 2)

    def op(x: Tensor, ids: Tensor, **options: Any) -> Any:
        return token_log_probs(x, ids, **options, **fields)

    compiled = torch.compile(op, backend="aot_eager", fullgraph=True)
    eager = outputs_and_gradients(op, logits, ids, **options)
    ours = outputs_and_gradients(compiled, logits, ids, **options)
    assert {name: t.dtype for name, t in ours.items()} == {n: t.dtype for n, t in eager.items()}
    if row.backend != "torch":
        for name, tensor in eager.items():
            assert torch.equal(bits(ours[name]), bits(tensor)), name
    else:  # decompositions may round differently: no more than torch itself
        options["backend"] = "torch"
        truth = outputs_and_gradients(op, logits.double(), ids, **options)
        assert_all_within_budget(ours, eager, truth)


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_new_temperature_does_not_recompile_for_ever(row: Row) -> None:
    """As a tensor. torch.compile makes a constant of every float that a custom op takes."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, fullgraph=True)
    def run(logits: Tensor, ids: Tensor, temperature: Tensor) -> Tensor:
        return token_log_probs(logits, ids, temperature=temperature, backend=row.backend).log_probs

    logits, ids = randn(4, 19), randint(19, 4)
    for step in range(6):  # an annealed temperature
        temperature = torch.full((4,), 1.0 - 0.05 * step)
        expected = token_log_probs(logits, ids, temperature=temperature, backend=row.backend)
        torch.testing.assert_close(run(logits, ids, temperature), expected.log_probs)
    assert counter.frame_count == 1


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_refuses_in_place(kernel_row: Row) -> None:
    def run(logits: Tensor, ids: Tensor) -> Tensor:
        return token_log_probs(
            logits, ids, inplace_backward=True, backend=kernel_row.backend
        ).log_probs

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match="inplace_backward: expected False under"):
        compiled(randn(4, 19).requires_grad_(), randint(19, 4))


@pytest.mark.parametrize("option", option_sets(19, 4))
def test_registered_ops_keep_torchs_rules(kernel_row: Row, option: str) -> None:
    # Schema, aliasing, shapes without data, autograd, dynamic shapes: torch's own list.
    from logpi.ops.token_log_probs import _library  # noqa: F401  registers them

    options = option_sets(19, 4)[option]
    warm = options.pop("temperature", 1.0)
    for fields in ((True,) * 5, (False,) * 5):
        for ids in (randint(14, 4), randint(14, 4, 3)):
            logits = randn(4, 19).requires_grad_()
            arguments = {"support": None, "vocab_size": None, "loss_mask": None, "softcap": None}
            arguments |= {"logit_scale": 1.0} | options
            call = check_call(logits, ids, warm, *arguments.values(), fields, False)
            row = kernel_row.backend
            torch.library.opcheck(torch.ops.logpi.token_log_probs.default, (row, *call))
            with torch.no_grad():
                log_probs, *_, stats = torch.ops.logpi.token_log_probs(row, *call)
                heads = log_probs, stats, randn(*ids.shape), randn(4) if fields[0] else None
                detached = call._replace(logits=logits.detach())
                torch.library.opcheck(
                    torch.ops.logpi.token_log_probs_backward.default, (row, *detached, *heads)
                )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # inductor's own
@pytest.mark.usefixtures("fresh_dynamo")
def test_inductor(row: Row) -> None:
    # The whole way down once a row: a C++ compiler runs, tens of seconds.
    if row.isa is not None:
        pytest.skip("the compiled graph calls the same op whatever the ISA")

    @torch.compile(fullgraph=True, dynamic=True)
    def loss(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        options = {"loss_mask": mask, "return_entropy": True, "temperature": 0.7}
        out = token_log_probs(2 * logits, ids, backend=row.backend, **options)
        return (out.log_probs * mask).mean() + 0.1 * out.entropy.mean()

    for length in (4, 9):
        logits, ids = randn(length, 19).requires_grad_(), randint(19, length)
        mask = torch.arange(length) % 3 != 0
        (ours,) = torch.autograd.grad(loss(logits, ids, mask), logits)
        with torch.compiler.set_stance("force_eager"):
            (eager,) = torch.autograd.grad(loss(logits, ids, mask), logits)
        torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_the_first_call_of_a_process_may_be_compiled(backend: str) -> None:
    """It once met a lock that torch.compile cannot trace; any eager call before it hid that."""
    program = (
        "import torch, logpi\n"
        "def f(x, ids):\n"
        f"    return logpi.token_log_probs(x, ids, backend={backend!r}).log_probs\n"
        "x, ids = torch.randn(4, 19), torch.arange(4)\n"
        "compiled = torch.compile(f, backend='aot_eager', fullgraph=True)(x, ids)\n"
        "torch.testing.assert_close(compiled, f(x, ids))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
