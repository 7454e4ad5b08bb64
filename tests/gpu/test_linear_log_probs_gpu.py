"""linear_log_probs on a GPU: numbers, streams, graphs, memory, rows counted without a wait.

Every body that can runs on the CPU row too, so that a machine without a GPU proves its logic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from logpi.core.active_rows import ActiveRows
from logpi.ops.linear_log_probs import BACKENDS, linear_log_probs
from logpi.ops.linear_log_probs._finish import finish, new_state
from logpi.ops.token_log_probs.op import check_call
from logpi.testing import DTYPES, SEEDS, assert_op_within_budget, bits, nan_empty

if TYPE_CHECKING:
    from conftest import Place

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
FIELDS = {f"return_{name}": True for name in ("entropy", "collision", "lse", "mean_logit")}
N, D, V = 37, 64, 4999  # V is prime: the last tile is ragged
TILES = 64 * 1024 * 4  # bytes of workspace for tiles of 1024 columns or less
_POSITIONAL = ("hidden_states", "weight", "token_ids")


def problem(
    dtype: torch.dtype, rows: int = N, columns: int = V, size: int = D, seed: int = 0
) -> dict[str, Any]:
    """Inputs of a plain call, on the CPU."""
    g = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(rows, size, generator=g).to(dtype),
        "weight": (torch.randn(columns, size, generator=g) / 2).to(dtype),
        "token_ids": torch.randint(columns, (rows,), generator=g),
        "upstream": [torch.randn(rows, generator=g), torch.randn(rows, generator=g)],
    }


def rich_problem(dtype: torch.dtype, seed: int = 0) -> dict[str, Any]:
    """Inputs with everything that may change between two replays of a graph."""
    inputs, g = problem(dtype, seed=seed), torch.Generator().manual_seed(seed + 1)
    inputs["token_ids"] = torch.randint(V, (N, 3), generator=g)
    inputs["upstream"][0] = torch.randn(N, 3, generator=g)
    inputs["bias"] = torch.randn(V, generator=g).to(dtype)
    inputs["temperature"] = 0.3 + torch.rand(N, generator=g)
    inputs["loss_mask"] = torch.rand(N, generator=g) < 0.7
    return inputs


def step(place: Place, inputs: dict[str, Any], **more: Any) -> list[Tensor]:
    """Every output, and the gradients of hidden states, weight and bias."""
    named = ("hidden_states", "weight", "bias")
    leaves = {name: inputs[name].detach().requires_grad_() for name in named if name in inputs}
    options = {name: at for name, at in inputs.items() if name not in (*_POSITIONAL, "upstream")}
    options |= {name: at for name, at in leaves.items() if name == "bias"}
    out = linear_log_probs(
        leaves["hidden_states"],
        leaves["weight"],
        inputs["token_ids"],
        backend=place.row,
        **{**options, **FIELDS, "return_top1": True, "workspace_bytes": TILES, **more},
    )
    grads = torch.autograd.grad(out[:2], [*leaves.values()], inputs["upstream"])
    return [*(one for one in out if one is not None), *grads]


def assert_same_bits(ours: list[Tensor], expected: list[Tensor], what: str = "") -> None:
    for at, (one, other) in enumerate(zip(ours, expected, strict=True)):
        assert torch.equal(bits(one), bits(other)), f"{what} result {at}"


# ---- numbers ------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "one tile": {},
    "tiles": {"workspace_bytes": TILES},
    "retained": {"workspace_bytes": TILES, "retain_bytes": 1 << 30},
    "retained in part": {"workspace_bytes": TILES, "retain_bytes": N * 2048 * 4},
    "slice": {"support": slice(101, 3001), "vocab_size": V - 63},
    "softcap": {"softcap": 30.0, "logit_scale": 1.7},
    "temperatures": {"temperature": torch.linspace(0.3, 2.0, N)},
    "mask": {"loss_mask": torch.arange(N) % 3 != 1, "workspace_bytes": TILES},
}


@by_dtype
@pytest.mark.parametrize("option", OPTIONS)
def test_within_budget(place: Place, option: str, dtype: torch.dtype) -> None:
    # On a CPU tests/ops has the whole grid: here one seed proves this test.
    for seed in SEEDS if place.gpu else SEEDS[:1]:
        inputs = place.holds(problem(dtype, seed=seed))
        inputs["token_ids"] = inputs["token_ids"] % 2900 + 101  # inside the slice too
        with nan_empty():
            assert_op_within_budget(
                linear_log_probs,
                *(inputs[name] for name in _POSITIONAL),
                backend=place.row,
                seed=seed,
                name=f"{option}, seed {seed}:",
                **place.holds(OPTIONS[option]),
                **FIELDS,
            )


def test_a_float32_head_of_bfloat16_weights(gpu_place: Place) -> None:
    # The products are written in float32, which no CPU does.
    inputs = gpu_place.holds(problem(torch.bfloat16))
    assert_op_within_budget(
        linear_log_probs,
        *(inputs[name] for name in _POSITIONAL),
        backend=gpu_place.row,
        logits_dtype=torch.float32,
        workspace_bytes=TILES,
        **FIELDS,
    )


@by_dtype
def test_bad_values_make_their_rows_nan(gpu_place: Place, dtype: torch.dtype) -> None:
    inputs = gpu_place.holds(rich_problem(dtype))
    inputs["loss_mask"] = torch.arange(N, device="cuda") != 3
    clean = step(gpu_place, inputs)
    at = torch.tensor([0, 1, 3], device="cuda")
    inputs["token_ids"][at] = torch.tensor([-1, V, -(2**40)], device="cuda")[:, None]
    inputs["temperature"].index_fill_(0, torch.tensor([2, 3], device="cuda"), 0.0)
    with gpu_place.without_sync():
        found = step(gpu_place, inputs)
    fields = 5  # of float; then top1 and the gradients
    for ours, before in zip(found[:fields], clean, strict=False):
        assert ours[:3].isnan().all()
        assert torch.equal(bits(ours[3:]), bits(before[3:]))
    assert (found[0][3] == 0).all()


def test_more_than_two_to_the_31_elements_in_a_tile(place: Place) -> None:
    # 64 different rows 4100 times: 2.15e9 elements, 4.3 GB. The kernels alone: a product may have
    # other bits in another place.
    rows, columns, times = (64, 8_192, 4_100) if place.gpu else (8, 1_031, 34)
    if 1.5 * rows * columns * times * 2 > place.free_bytes():
        pytest.skip(f"needs 6.5 GB of free GPU memory, {place.free_bytes() / 1e9:.1f} are")
    kernels = next(one for one in BACKENDS if one.name == place.row).kernels
    g = torch.Generator().manual_seed(0)
    alone = place.holds(torch.randn(rows, columns, generator=g).bfloat16())
    ids = place.holds(torch.randint(columns, (rows, 1), generator=g))
    upstream = place.holds([torch.randn(rows, 1, generator=g), torch.randn(rows, generator=g)])

    def results(copies: int) -> list[Tensor]:
        logits = alone.repeat(copies, 1)
        call = check_call(
            logits, ids.repeat(copies, 1), 1.0, None, None, None, None, 1.0, (True,) * 5, True
        )
        state, targets = new_state(call)
        kernels.fold(call, state, targets)
        out, stats = finish(call, state, targets, columns, kernels.REFERENCE)
        both = [upstream[0].repeat(copies, 1), upstream[1].repeat(copies)]
        grad = kernels.backward(call, out.log_probs, stats, *both)
        return [state, *(one for one in out if one is not None), grad]

    expected, found = results(1), results(times)
    for at in range(0, rows * times, rows):
        assert_same_bits([one[at : at + rows] for one in found], expected, f"rows from {at}:")


@by_dtype
def test_memory(place: Place, dtype: torch.dtype) -> None:
    if not place.gpu and dtype != torch.float32:
        pytest.skip("on a CPU 16-bit products make temporaries, and all are added up here")
    rows, columns, size = (4_096, 151_936, 256) if place.gpu else (256, 20_011, 8)
    room, mib = ((64 << 20), 1 << 20) if place.gpu else (1 << 20, 1 << 18)
    inputs = place.holds(problem(dtype, rows, columns, size))
    hidden, weight = (inputs[name].detach().requires_grad_() for name in _POSITIONAL[:2])
    logits = rows * columns * dtype.itemsize

    def forward() -> Any:
        ids = inputs["token_ids"]
        return linear_log_probs(
            hidden, weight, ids, backend=place.row, workspace_bytes=room, return_entropy=True
        )[:2]

    def backward(outputs: Any) -> None:
        torch.autograd.grad(outputs, (hidden, weight), inputs["upstream"])

    backward(forward())  # whatever is made once is made now
    assert place.peak_bytes(forward) <= room + mib + 256 * rows
    outputs = forward()
    grads = hidden.nbytes + weight.nbytes
    most = room + grads + 12 * hidden.numel() + mib + 256 * rows
    assert place.peak_bytes(lambda: backward(outputs)) <= most
    assert room + most < logits  # or it would show nothing


# ---- streams, graphs, waits ---------------------------------------------------------------------


@by_dtype
def test_runs_on_the_callers_stream(place: Place, dtype: torch.dtype) -> None:
    inputs = place.holds(rich_problem(dtype))
    expected = step(place, inputs)
    late = {**inputs, "hidden_states": torch.full_like(inputs["hidden_states"], torch.nan)}
    with place.busy_stream():  # a kernel on any other stream would read NaN
        late["hidden_states"].copy_(inputs["hidden_states"])
        found = step(place, late)
    assert_same_bits(found, expected)


@by_dtype
@pytest.mark.parametrize("draw", [problem, rich_problem], ids=["plain", "rich"])
def test_nothing_is_read_back(place: Place, draw: Any, dtype: torch.dtype) -> None:
    inputs = place.holds(draw(dtype))
    expected = step(place, inputs)  # Triton compiles, and may wait
    with place.without_sync():
        found = step(place, inputs)
        retained = step(place, inputs, retain_bytes=1 << 30)
    assert_same_bits(found, expected)
    assert_same_bits(retained[:6], expected[:6])  # the outputs: gradients come of other tiles


@by_dtype
@pytest.mark.parametrize("draw", [problem, rich_problem], ids=["plain", "rich"])
def test_a_replayed_graph_sees_new_inputs(place: Place, draw: Any, dtype: torch.dtype) -> None:
    inputs = place.holds(draw(dtype))
    again = place.recorded(lambda: step(place, inputs))
    for seed in (1, 2, 3):
        fresh = place.holds(draw(dtype, seed=seed))
        for name, held in inputs.items():
            pairs = zip(held, fresh[name], strict=True) if name == "upstream" else []
            for old, new in [(held, fresh[name])] if isinstance(held, Tensor) else pairs:
                old.copy_(new)
        found = [one.clone() for one in again()]
        recorded = step(place, fresh)
        for at, (one, other) in enumerate(zip(found, recorded, strict=True)):
            # a graph multiplies masked rows too: its products have other shapes, and other bits
            torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2, msg=f"result {at}")


def test_the_count_comes_when_it_is_asked_for(gpu_place: Place) -> None:
    mask = torch.arange(1000, device="cuda") % 4 == 0
    ActiveRows(mask, 1000).count(settle=True)  # pinned memory is made once
    with gpu_place.without_sync():
        torch.cuda._sleep(40_000_000)  # some 20 ms
        rows = ActiveRows(mask, 1000)
        assert rows.count() == 1000  # the device is busy: all of them, and no wait
        assert rows.count(settle=True) == 250
        assert rows.count() == 250
    assert rows.index is not None
    assert rows.index[:250].tolist() == [*range(0, 1000, 4)]


def test_masked_rows_are_multiplied_no_more_once_counted(gpu_place: Place) -> None:
    # 1 row of 64 is active, and 30 of 32 tiles come after the count: the clock sees it.
    inputs = gpu_place.holds(problem(torch.bfloat16, 8_192, 32 * 8_192, 1_024))
    whole = [inputs[name] for name in _POSITIONAL]
    mask = torch.arange(8_192, device="cuda") % 64 == 0

    def milliseconds(**options: Any) -> float:
        times = []
        for _ in range(5):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            linear_log_probs(*whole, backend=gpu_place.row, **options)
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return min(times)

    assert milliseconds(loss_mask=mask) < 0.5 * milliseconds()
