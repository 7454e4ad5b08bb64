"""The CUDA kernels of linear_log_probs alone: tiles of given logits, folded and differentiated.

Without the products of hidden states and weight, whose roundings would hide the kernels'.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from logpi import TokenLogProbs, token_log_probs
from logpi.ops.linear_log_probs import _cuda
from logpi.ops.linear_log_probs._finish import AT, TOP, TOP_LOGIT, finish, new_state
from logpi.ops.token_log_probs.op import Call, check_call
from logpi.testing import (
    CASES,
    DTYPES,
    Case,
    assert_op_within_budget,
    bits,
    nan_empty,
)
from rows import ROWS, Row

on_cuda = pytest.mark.parametrize(
    "kernel_row", [row for row in ROWS if row.backend == "cuda"], ids=str, indirect=True
)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

# 4999 is prime: 3 tiles of it are 1666 or 1667 wide, 64 of them 78 or 79, and their rows begin at
# every alignment.
N, V = 4, 4999
TILES = (1, 3, 64)
FIELDS = {f"return_{name}": True for name in ("entropy", "collision", "lse", "mean_logit")}
Options = dict[str, Any]


# ---- token_log_probs by way of tiles ------------------------------------------------------------


def tiled(
    logits: Tensor, token_ids: Tensor, *, tiles: int, backend: str, **options: Any
) -> TokenLogProbs:
    """`token_log_probs`; from its row `cuda` as linear_log_probs computes it, in so many tiles."""
    if backend != "cuda":
        return token_log_probs(logits, token_ids, backend=backend, **options)
    call = checked(logits, token_ids, **options)
    fields = _Tiled.apply(logits, call, tiles)
    return TokenLogProbs(*(_as_asked(field, token_ids) for field in fields))


def _as_asked(field: Tensor | None, token_ids: Tensor) -> Tensor | None:
    per_token = field is not None and field.dim() == 2
    return field.view(token_ids.shape) if per_token else field


def checked(logits: Tensor, token_ids: Tensor, **options: Any) -> Call:
    names = ("entropy", "collision", "lse", "top1", "mean_logit")
    fields = tuple(bool(options.pop(f"return_{name}", False)) for name in names)
    arguments: Options = {
        "temperature": 1.0,
        "support": None,
        "vocab_size": None,
        "loss_mask": None,
        "softcap": None,
        "logit_scale": 1.0,
        **options,
    }
    return check_call(logits, token_ids, fields=fields, inplace_backward=True, **arguments)


def cut(call: Call, logits: Tensor, tiles: int) -> list[tuple[Call, Tensor]]:
    """The support of a call in tiles, each with the buffer that it lies in, NaN all around."""
    begin, size = call.support_begin, call.support_end - call.support_begin
    edges = [begin + size * at // tiles for at in range(tiles + 1)]
    found = []
    for at, (first, last) in enumerate(pairwise(edges)):
        width, start = last - first, 1 + at % 17
        buffer = logits.new_full((len(logits) * width + start + 17,), torch.nan)
        tile = buffer[start : start + len(logits) * width].view(len(logits), width)
        tile.copy_(logits[:, first:last])
        if call.loss_mask is not None:
            tile[~call.loss_mask] = torch.nan  # what a masked row holds is never looked at
        part = call._replace(logits=tile, support_begin=first, support_end=last, first_column=first)
        found.append((part, buffer))
    return found


def folded(call: Call, parts: list[tuple[Call, Tensor]]) -> tuple[Tensor, Tensor]:
    state, targets = new_state(call)
    for part, _ in parts:
        _cuda.fold(part, state, targets)
    return state, targets


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, call: Call, tiles: int) -> tuple[Tensor | None, ...]:
        size = call.support_end - call.support_begin
        state, targets = folded(call, cut(call, logits, tiles))
        out, stats = finish(call, state, targets, size, _cuda.REFERENCE)
        if call.loss_mask is not None:
            masked = ~call.loss_mask
            out = TokenLogProbs._make(
                None if one is None else one.masked_fill(masked.view(-1, *[1] * (one.dim() - 1)), 0)
                for one in out
            )
        ctx.save_for_backward(logits, out.log_probs, stats)
        ctx.call, ctx.tiles = call, tiles
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(one for one in out[2:] if one is not None))
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, h: Tensor | None, *_: None) -> tuple[Any, ...]:
        logits, log_probs, stats = ctx.saved_tensors
        grad = torch.zeros_like(logits)
        for part, buffer in cut(ctx.call, logits, ctx.tiles):
            tile = _cuda.backward(part, log_probs, stats, g, h)
            assert tile.data_ptr() == part.logits.data_ptr()
            grad[:, part.support_begin : part.support_end] = tile
            tile.fill_(torch.nan)
            assert buffer.isnan().all(), "written outside the tile"
        return grad, None, None


# ---- the definition -----------------------------------------------------------------------------


def _ids(g: torch.Generator, *shape: int, below: int = V) -> Tensor:
    return torch.randint(below, shape or (N,), generator=g)


def _plain(g: torch.Generator) -> tuple[Tensor, Options]:
    return _ids(g), {}


def _padding(g: torch.Generator) -> tuple[Tensor, Options]:
    return _ids(g, below=V - 63), {"vocab_size": V - 63}


def _slice(g: torch.Generator) -> tuple[Tensor, Options]:
    ids = torch.randint(101, 3001, (N,), generator=g)
    ids[0] = 7  # outside: log-prob -inf, and its gradient is that of -lse
    return ids, {"support": slice(101, 3001)}


def _temperatures(g: torch.Generator) -> tuple[Tensor, Options]:
    return _ids(g), {"temperature": torch.tensor([0.05, 0.6, 1.0, 3.0])}


def _softcap(g: torch.Generator) -> tuple[Tensor, Options]:
    return _ids(g), {"softcap": 30.0}


def _scale(g: torch.Generator) -> tuple[Tensor, Options]:
    return _ids(g), {"logit_scale": 0.0625, "temperature": 0.7}


def _many_ids(g: torch.Generator) -> tuple[Tensor, Options]:
    ids = _ids(g, N, 37)  # more than a warp's lanes
    ids[:, 3] = ids[:, 1]  # duplicates: their gradients add up
    return ids, {}


def _masked(g: torch.Generator) -> tuple[Tensor, Options]:
    return _ids(g), {"loss_mask": torch.tensor([True, False, True, False])}


def _everything(g: torch.Generator) -> tuple[Tensor, Options]:
    ids = torch.randint(5, V - 63, (N, 3), generator=g)
    options: Options = {"support": slice(5, V - 63), "vocab_size": V - 63}
    options |= {"softcap": 20.0, "logit_scale": 1.7}
    options["temperature"] = torch.tensor([0.9, 1.1, 0.3, 1.2])
    options["loss_mask"] = torch.tensor([True, True, False, True])
    return ids, options


OPTIONS: dict[str, Callable[[torch.Generator], tuple[Tensor, Options]]] = {
    "plain": _plain,
    "padding": _padding,
    "slice": _slice,
    "temperatures": _temperatures,
    "softcap": _softcap,
    "scale": _scale,
    "many_ids": _many_ids,
    "masked": _masked,
    "everything": _everything,
}


@on_cuda
@by_dtype
@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_kind_of_row(kernel_row: Row, case: Case, tiles: int, dtype: torch.dtype) -> None:
    seed = TILES.index(tiles)
    ids = _ids(torch.Generator().manual_seed(seed))
    logits = case.logits(N, V, dtype=dtype, seed=seed)
    with nan_empty():
        assert_op_within_budget(
            tiled, logits, ids, backend="cuda", seed=seed, tiles=tiles, **FIELDS
        )


@on_cuda
@by_dtype
@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option(kernel_row: Row, option: str, tiles: int, dtype: torch.dtype) -> None:
    seed = TILES.index(tiles)
    ids, options = OPTIONS[option](torch.Generator().manual_seed(seed))
    logits = CASES[0].logits(N, V, dtype=dtype, seed=seed)
    with nan_empty():
        assert_op_within_budget(
            tiled, logits, ids, backend="cuda", seed=seed, tiles=tiles, **FIELDS, **options
        )


@on_cuda
@pytest.mark.parametrize("columns", [1, 7, 8, 1024, 40_001])  # the last: a tile of three segments
def test_every_length(kernel_row: Row, columns: int) -> None:
    for dtype in DTYPES:
        logits, ids = CASES[0].logits(N, columns, dtype=dtype), torch.randint(columns, (N,))
        assert_op_within_budget(tiled, logits, ids, backend="cuda", tiles=1, **FIELDS)


@on_cuda
def test_entropy_alone_takes_the_shorter_sums(kernel_row: Row) -> None:
    logits, ids = CASES[0].logits(N, V), torch.arange(N)
    for fields in ({}, {"return_entropy": True}, {"return_lse": True, "return_top1": True}):
        assert_op_within_budget(tiled, logits, ids, backend="cuda", tiles=3, **fields)


# ---- the state ----------------------------------------------------------------------------------


@on_cuda
@by_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_first_of_equals_is_the_top(kernel_row: Row, case: Case, dtype: torch.dtype) -> None:
    logits = case.logits(N, V, dtype=dtype, seed=1)
    best = logits.double().argmax(-1)  # on a CPU torch names the first among equals
    for tiles in TILES:
        for options in ({}, {"softcap": 1e-3}):  # squashed, half of a row is the cap itself
            call = checked(logits, best, **options)
            state, targets = folded(call, cut(call, logits, tiles))
            assert state[:, AT].tolist() == best.tolist()
            assert torch.equal(state[:, TOP_LOGIT], logits.double().amax(-1))
            assert torch.equal(state[:, TOP], targets[:, 0])
            out, _ = finish(call._replace(top1=True), state, targets, V, TOP)
            assert out.top1 is not None
            assert out.top1.all()


@on_cuda
@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_bad_values_stay_in_their_rows(kernel_row: Row, softcap: float | None, tiles: int) -> None:
    clean = CASES[0].logits(8, V)
    logits, ids = clean.clone(), torch.arange(8)
    logits[0, 4000] = torch.nan
    logits[1, 4000] = torch.inf  # a softcap makes it an ordinary number
    logits[2] = -torch.inf
    logits[3, :4998] = -torch.inf  # all but the last: for most tiles there is nothing
    temperature = torch.ones(8)
    temperature[4] = 0.0
    ids[5], ids[6] = -1, V
    options = {"temperature": temperature, "softcap": softcap, **FIELDS}
    ours = tiled(logits, ids, tiles=tiles, backend="cuda", **options)
    expected = token_log_probs(logits, ids, backend="cuda", **options)
    for name, one, other in zip(TokenLogProbs._fields, ours, expected, strict=True):
        if one is not None and other is not None:
            if softcap is None:  # NaN as a whole, where token_log_probs still has a mean of inf
                other[1] = torch.nan
            other[5:7] = torch.nan  # and where an id is none
            torch.testing.assert_close(one, other, equal_nan=True, msg=name)


@on_cuda
@by_dtype
def test_bits_do_not_depend_on_other_rows(kernel_row: Row, dtype: torch.dtype) -> None:
    ids, options = _everything(torch.Generator().manual_seed(0))
    logits = CASES[0].logits(N, V, dtype=dtype)

    def results(index: Tensor) -> list[Tensor]:
        leaf, upstream = logits[index].requires_grad_(), torch.randn(N, 3, generator=g())[index]
        here = {name: at[index] if isinstance(at, Tensor) else at for name, at in options.items()}
        out = tiled(leaf, ids[index], tiles=3, backend="cuda", **FIELDS, **here)
        grads = torch.autograd.grad(out.log_probs, leaf, upstream)
        return [one for one in (*out, *grads) if one is not None]

    def g() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    together = results(torch.arange(N))
    for index in (torch.tensor([2]), torch.tensor([3, 1]), torch.arange(N).repeat(20)):
        for ours, expected in zip(results(index), together, strict=True):
            assert torch.equal(bits(ours), bits(expected[index]))


@on_cuda
def test_a_masked_row_keeps_its_state(kernel_row: Row) -> None:
    logits, mask = CASES[0].logits(N, 300), torch.tensor([True, False, True, False])
    call = checked(logits, torch.arange(N), loss_mask=mask)
    state, targets = folded(call, cut(call, logits, 3))
    fresh = new_state(call)
    for ours, before in zip((state, targets), fresh, strict=True):
        assert torch.equal(ours[~mask], before[~mask])
        assert (ours[mask] != before[mask]).any()


# ---- the gradient of a tile ---------------------------------------------------------------------


@on_cuda
@by_dtype
def test_a_tile_of_more_than_one_block(kernel_row: Row, dtype: torch.dtype) -> None:
    # A block writes 16384 elements of a 16-bit row, 8192 of a float32 one.
    logits = CASES[0].logits(2, 40_009, dtype=dtype)
    ids = torch.tensor([0, 39_999])
    assert_op_within_budget(tiled, logits, ids, backend="cuda", tiles=2, **FIELDS)


@on_cuda
@by_dtype
def test_columns_of_a_tile_outside_the_support_get_zero(
    kernel_row: Row, dtype: torch.dtype
) -> None:
    # Tile [100, 400), support [150, 333): what lies beside the support is zeroed, not read.
    logits, ids = CASES[0].logits(N, 600, dtype=dtype), torch.tensor([150, 200, 332, 7])
    call = checked(logits, ids, support=slice(150, 333))
    state, targets = folded(call, cut(call, logits, 1))
    out, stats = finish(call, state, targets, 183, _cuda.REFERENCE)
    upstream = torch.ones(N, 1)
    (part, _), *_ = cut(call, logits, 1)
    exact = _cuda.backward(part, out.log_probs, stats, upstream, None)

    tile = logits[:, 100:400].clone()
    tile[:, :50] = tile[:, 233:] = torch.nan
    wide = call._replace(logits=tile, first_column=100)
    assert _cuda.backward(wide, out.log_probs, stats, upstream, None) is tile
    assert torch.equal(bits(tile[:, 50:233]), bits(exact))
    assert not tile[:, :50].any()
    assert not tile[:, 233:].any()


@on_cuda
def test_no_rows_launch_nothing(kernel_row: Row) -> None:
    call = checked(torch.empty(0, 10), torch.empty(0, dtype=torch.int64))
    _cuda.fold(call, *new_state(call))
