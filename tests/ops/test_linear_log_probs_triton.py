"""The triton row's kernels on tiles of given logits: what its fold carries, its gradients of tiles.
Whole calls of linear_log_probs, products included, are tested on every row elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

import interpreter
from logpi import token_log_probs
from logpi.ops.linear_log_probs import _finish
from logpi.ops.token_log_probs import TokenLogProbs
from logpi.ops.token_log_probs.op import Call, check_call
from logpi.testing import (
    CASES,
    DTYPES,
    Case,
    assert_all_within_budget,
    assert_within_budget,
    bits,
    outputs_and_gradients,
)
from rows import ROWS, Row

Options = dict[str, Any]

on_triton = pytest.mark.parametrize(
    "kernel_row", [row for row in ROWS if row.backend == "triton"], ids=str, indirect=True
)

# A tile of all 2111 columns is two groups of four blocks of 256 and a rest; a third of it has rows
# that begin at 16-byte addresses; 64 tiles of 33 columns have not, and the last has 32.
N, V = 3, 2111
FLOATS = ("entropy", "collision", "lse", "mean_logit")
ALL = {f"return_{name}": True for name in (*FLOATS, "top1")}


# ---- a call on logits that are there, cut into tiles --------------------------------------------


def checked(logits: Tensor, ids: Tensor, **options: Any) -> Call:
    known: Options = {"temperature": 1.0, "support": None, "vocab_size": None, "loss_mask": None}
    known |= {"softcap": None, "logit_scale": 1.0}
    fields = ("entropy", "collision", "lse", "top1", "mean_logit")
    asked = tuple(options.pop(f"return_{name}", False) for name in fields)
    call = check_call(logits, ids, *(known | options).values(), asked, False)
    return call._replace(token_ids=call.token_ids.view(call.num_rows, call.ids_per_row))


def tiles(call: Call, logits: Tensor, count: int) -> Iterator[Call]:
    """The calls on each of `count` tiles of the support, as linear_log_probs makes them."""
    width = -(-(call.support_end - call.support_begin) // count)
    for begin in range(call.support_begin, call.support_end, width):
        end = min(begin + width, call.support_end)
        tile = logits[:, begin:end].clone(memory_format=torch.contiguous_format)
        yield call._replace(
            logits=tile,
            support_begin=begin,
            support_end=end,
            first_column=begin,
            inplace_backward=True,
        )


def folded(call: Call, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    from logpi.ops.linear_log_probs import _triton

    state, targets = _finish.new_state(call)
    for tile in tiles(call, logits, count):
        _triton.fold(tile, state, targets)
    return state, targets


def finished(call: Call, state: Tensor, targets: Tensor) -> tuple[TokenLogProbs, Tensor]:
    out, stats = _finish.finish(
        call, state, targets, call.support_end - call.support_begin, _finish.TOP
    )
    mask = call.loss_mask
    if mask is not None:  # linear_log_probs leaves such rows out before, and puts 0 there after
        out = TokenLogProbs._make(
            None if f is None else f.where(mask.view(-1, *[1] * (f.dim() - 1)), 0) for f in out
        )
    return out, stats


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, call: Call, count: int) -> tuple[Tensor | None, ...]:
        out, stats = finished(call, *folded(call, logits, count))
        ctx.saved, ctx.call, ctx.count = (logits, out.log_probs, stats), call, count
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(field for field in out[2:] if field is not None))
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, None, None]:
        from logpi.ops.linear_log_probs import _triton

        logits, *saved = ctx.saved
        out = torch.zeros_like(logits)
        for tile in tiles(ctx.call, logits, ctx.count):
            written = _triton.backward(tile, *saved, *grads[:2])
            assert written is tile.logits
            out[:, tile.support_begin : tile.support_end] = written
        return out, None, None


def tiled(logits: Tensor, ids: Tensor, count: int, **options: Any) -> TokenLogProbs:
    """token_log_probs of `[N, V]` logits by the kernels of linear_log_probs."""
    call = checked(logits.detach(), ids, **options)
    out = TokenLogProbs(*_Tiled.apply(logits, call, count))
    flat = ids.dim() == 1
    return out._replace(
        log_probs=out.log_probs[:, 0] if flat else out.log_probs,
        top1=out.top1[:, 0] if flat and out.top1 is not None else out.top1,
    )


# ---- against float64 ----------------------------------------------------------------------------


def _ids(seed: int, *shape: int, below: int = V) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


OPTIONS: dict[str, Callable[[int], tuple[Tensor, Options]]] = {
    "plain": lambda seed: (_ids(seed, N), {}),
    "padding": lambda seed: (_ids(seed, N, below=V - 63), {"vocab_size": V - 63}),
    # The first id lies outside the support: -inf, and its gradient is that of -lse.
    "slice": lambda seed: (torch.tensor([7, 101, 1900]), {"support": slice(101, 1901)}),
    "temperature": lambda seed: (_ids(seed, N), {"temperature": 0.7}),
    "temperatures": lambda seed: (_ids(seed, N), {"temperature": torch.tensor([0.05, 1.0, 3.0])}),
    "softcap": lambda seed: (_ids(seed, N), {"softcap": 30.0}),
    "logit_scale": lambda seed: (_ids(seed, N), {"logit_scale": 0.0625}),
    # In every tile of three, and one twice: their gradients add up.
    "many_ids": lambda seed: (torch.tensor([[0, 800, 2110, 800, 3]] * N), {}),
    "masked": lambda seed: (_ids(seed, N), {"loss_mask": torch.tensor([True, False, True])}),
    "everything": lambda seed: (
        _ids(seed, N, 3),
        {
            "support": slice(9, 2001),
            "softcap": 20.0,
            "logit_scale": 1.7,
            "temperature": torch.tensor([0.9, 1.1, 0.3]),
            "loss_mask": torch.tensor([True, False, True]),
        },
    ),
}


@lru_cache(maxsize=8)
def problem(case: Case, option: str, dtype: torch.dtype, seed: int) -> tuple[Any, ...]:
    """(logits, ids, options, yardstick, truth)"""
    logits = case.logits(N, V, dtype=dtype, seed=seed)
    ids, options = OPTIONS[option](seed)
    options |= {f"return_{name}": True for name in FLOATS}
    arguments = {"seed": seed, "backend": "torch", **options}
    yardstick = outputs_and_gradients(token_log_probs, logits, ids, **arguments)
    truth = outputs_and_gradients(token_log_probs, logits.double(), ids, **arguments)
    return logits, ids, options, yardstick, truth


def check(case: Case, option: str, dtype: torch.dtype, count: int, seed: int) -> None:
    logits, ids, options, yardstick, truth = problem(case, option, dtype, seed)
    ours = outputs_and_gradients(tiled, logits, ids, seed=seed, count=count, **options)
    assert_all_within_budget(ours, yardstick, truth, name=f"{option}, {case}, {count} tiles:")


@on_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_logits(kernel_row: Row, case: Case, dtype: torch.dtype) -> None:
    check(case, "plain", dtype, 3, seed=1)


@on_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_tile(kernel_row: Row, case: Case) -> None:
    check(case, "plain", torch.float32, 1, seed=1)


@on_triton
@pytest.mark.parametrize("name", ["normal", "peaked", "offset", "neg_inf_prefix"])
@pytest.mark.parametrize("option", [name for name in OPTIONS if name != "plain"])
def test_any_option(kernel_row: Row, option: str, name: str) -> None:
    (case,) = (case for case in CASES if case.name == name)
    check(case, option, torch.float32, 3, seed=2)


@on_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_many_tiles(kernel_row: Row, case: Case) -> None:
    logits, ids, options, yardstick, truth = problem(case, "plain", torch.float32, 3)
    out = tiled(logits, ids, 64, **options)
    for field in ("log_probs", *FLOATS):
        ours = getattr(out, field)
        assert_within_budget(ours, yardstick[field], truth[field], name=f"{case}, {field}")


@on_triton
def test_many_tiles_have_gradients(kernel_row: Row) -> None:
    check(CASES[0], "many_ids", torch.bfloat16, 20, seed=4)


@on_triton
@pytest.mark.parametrize("option", ["many_ids", "everything"])
def test_tiles_of_many_blocks(kernel_row: Row, option: str) -> None:
    # 704 columns: five groups of the backward and a half, and of the fold a quarter of that. All
    # columns of most groups lie inside and hold no token, which is a path of its own.
    with interpreter.small_tiles(block=32):
        check(CASES[0], option, torch.float32, 3, seed=6)


def _error_of_rest(count: int, between: Callable[[Tensor], None]) -> float:
    from logpi.ops.linear_log_probs import _triton

    logits = CASES[1].logits(1, 4096, seed=5)  # flat: every tile counts the same
    call = checked(logits, torch.zeros(1, dtype=torch.int64))
    state, targets = _finish.new_state(call)
    for tile in tiles(call, logits, count):
        _triton.fold(tile, state, targets)
        between(state)
    truth = (logits.double() - logits.max()).exp().sum() - 1
    return (state[0, _finish.REST] / truth - 1).abs().item()


@on_triton
def test_errors_do_not_grow_with_the_number_of_tiles(kernel_row: Row) -> None:
    assert _error_of_rest(128, lambda state: None) < 2e-8  # 3e-9 with 4 tiles
    assert _error_of_rest(128, lambda state: state.copy_(state.float())) > 4e-8  # were it float32


# ---- what is carried ----------------------------------------------------------------------------


@on_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_know_nothing_of_other_rows(kernel_row: Row, dtype: torch.dtype) -> None:
    logits, ids = CASES[0].logits(5, V, dtype=dtype), _ids(0, 5, 2)
    together = folded(checked(logits, ids, **ALL), logits, 3)
    for part in (slice(0, 1), slice(1, 5), slice(4, 5)):
        alone = folded(checked(logits[part], ids[part], **ALL), logits[part], 3)
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(bits(one), bits(other[part]))


@on_triton
def test_asking_for_more_changes_no_bit(kernel_row: Row) -> None:
    logits, ids = CASES[0].logits(N, V), _ids(0, N)
    plain, _ = folded(checked(logits, ids), logits, 3)
    state, _ = folded(checked(logits, ids, **ALL), logits, 3)
    asked = [_finish.SQUARE, _finish.LINEAR, _finish.AT]
    others = [field for field in range(_finish.FIELDS) if field not in asked]
    assert torch.equal(bits(plain[:, others]), bits(state[:, others]))
    assert plain[:, asked].tolist() == [[0.0, 0.0, -1.0]] * N  # as they were


@on_triton
def test_masked_rows_are_left_as_they_are(kernel_row: Row) -> None:
    logits, ids = CASES[0].logits(N, V), _ids(0, N)
    logits[1] = torch.nan
    mask = torch.tensor([True, False, True])
    call = checked(logits, ids, loss_mask=mask, **ALL)
    before, after = _finish.new_state(call), folded(call, logits, 3)
    for fresh, carried in zip(before, after, strict=True):
        assert torch.equal(bits(fresh[1]), bits(carried[1]))
        assert carried[mask].isfinite().all()
    out = _Tiled.apply(logits.requires_grad_(), call, 3)
    (grad,) = torch.autograd.grad(out[0].sum() + out[1].sum(), logits)
    assert not grad[1].any()
    assert grad[mask].isfinite().all()


@on_triton
@pytest.mark.parametrize("column", [0, 1000, V - 1], ids=lambda column: f"column {column}")
def test_nan_stays_in_its_row_and_to_the_end(kernel_row: Row, column: int) -> None:
    logits = CASES[0].logits(N, V)
    # The best of each tile: one of them is what the others make the row's argmax.
    ids = torch.stack(
        [part.argmax(-1) + 704 * i for i, part in enumerate(logits.split(704, -1))], -1
    )
    out = tiled(logits, ids, 3, **ALL)
    assert out.top1.any(-1).all()
    logits[1, column] = torch.nan
    for field, clean in zip(tiled(logits, ids, 3, **ALL), out, strict=True):
        assert torch.equal(bits(field[::2]), bits(clean[::2]))
        assert not field[1].any() if field.dtype == torch.bool else field[1].isnan().all()


@on_triton
def test_an_id_that_is_none_makes_its_row_nan(kernel_row: Row) -> None:
    logits = CASES[0].logits(N, V)
    ids = torch.tensor([[0, 1], [-1, 5], [V, 5]])
    call = checked(logits, ids, **ALL)
    _, targets = folded(call, logits, 3)
    assert targets.isnan().tolist() == [[False] * 2, [True, False], [True, False]]
    assert targets[1:, 1].tolist() == logits[1:, 5].double().tolist()


@on_triton
def test_the_first_of_equal_tops(kernel_row: Row) -> None:
    logits = torch.zeros(2, V)
    logits[:, [1500, 800, 2110]] = 3.0  # in the second of three tiles, twice, and in the third
    logits[1, 4] = 3.0
    ids = torch.tensor([[800, 1500, 2110, 4]] * 2)
    out = tiled(logits, ids, 3, **ALL)
    assert out.top1.tolist() == [[True, False, False, False], [False, False, False, True]]
