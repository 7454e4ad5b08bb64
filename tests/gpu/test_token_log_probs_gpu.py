"""token_log_probs on a GPU: numbers, streams, graphs, memory, and offsets beyond 2^31.

Every body that can runs on the CPU row too, so that a machine without a GPU proves its logic.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))  # its options and views are ours too

import small_calls
from test_token_log_probs_layout import ALL, VIEWS
from test_token_log_probs_numerics import ALL_FLOATS, OPTIONS, N, V

from logpi import KeepSet, token_log_probs
from logpi.testing import (
    CASES,
    DTYPES,
    SEEDS,
    Case,
    assert_all_within_budget,
    assert_op_within_budget,
    bits,
    in_float64,
    nan_empty,
    outputs_and_gradients,
)

if TYPE_CHECKING:
    from conftest import Place

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
FEW = 264  # up to so many rows a kernel may split a row over blocks


def step(place: Place, inputs: dict[str, Any], **more: Any) -> list[Tensor]:
    """Every output and the gradient."""
    options = {name: value for name, value in inputs.items() if name not in _POSITIONAL} | more
    leaf = inputs["logits"].detach().requires_grad_()
    out = token_log_probs(leaf, inputs["token_ids"], backend=place.row, **ALL, **options)
    return [*out, *torch.autograd.grad(out[:2], leaf, inputs["upstream"])]


_POSITIONAL = ("logits", "token_ids", "upstream")


def problem(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> dict[str, Any]:
    """Inputs of a plain call, on the CPU."""
    g = torch.Generator().manual_seed(seed)
    return {
        "logits": (4 * torch.randn(rows, columns, generator=g)).to(dtype),
        "token_ids": torch.randint(columns, (rows,), generator=g),
        "upstream": [torch.randn(rows, generator=g), torch.randn(rows, generator=g)],
    }


def rich_problem(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> dict[str, Any]:
    """Inputs with everything that may change between two replays of a graph."""
    inputs, g = problem(rows, columns, dtype, seed), torch.Generator().manual_seed(seed + 1)
    kept = [torch.randperm(columns, generator=g)[: 5 + row % 7].tolist() for row in range(rows)]
    ids = torch.randint(columns, (rows, 3), generator=g)
    ids[:, 0] = torch.tensor([row[0] for row in kept])
    inputs["token_ids"], inputs["support"] = ids, KeepSet.from_lists(kept)
    inputs["upstream"][0] = torch.randn(rows, 3, generator=g)
    inputs["temperature"] = 0.3 + torch.rand(rows, generator=g)
    inputs["loss_mask"] = torch.rand(rows, generator=g) < 0.7
    return inputs


def tensors(inputs: dict[str, Any]) -> list[Tensor]:
    keep = inputs.get("support")
    parts = [*inputs["upstream"], *([keep.indptr, keep.indices] if keep else [])]
    return parts + [value for value in inputs.values() if isinstance(value, Tensor)]


def assert_same_bits(ours: list[Tensor], expected: list[Tensor], what: str = "") -> None:
    for at, (one, other) in enumerate(zip(ours, expected, strict=True)):
        assert torch.equal(bits(one), bits(other)), f"{what} result {at}"


# ---- numbers ------------------------------------------------------------------------------------


@by_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("option", OPTIONS)
def test_within_budget(place: Place, option: str, case: Case, dtype: torch.dtype) -> None:
    # On a CPU tests/ops has the whole grid: here one seed proves this test.
    for seed in SEEDS if place.gpu else SEEDS[:1]:
        ids, options = OPTIONS[option](torch.Generator().manual_seed(seed))
        logits = case.logits(N, V, dtype=dtype, seed=seed)
        name = f"{option}, {case}, seed {seed}:"
        with nan_empty():
            assert_op_within_budget(
                token_log_probs,
                *place.holds([logits, ids]),
                backend=place.row,
                seed=seed,
                name=name,
                **place.holds(options),
                **ALL_FLOATS,
            )


@by_dtype
@pytest.mark.parametrize("rows", [1, 64, FEW + 1])  # one; a decode step; one block a row
def test_a_real_vocabulary_within_budget(place: Place, rows: int, dtype: torch.dtype) -> None:
    columns = 151_936 if place.gpu else 4_999
    inputs = place.holds(problem(rows, columns, dtype))
    with nan_empty():
        assert_op_within_budget(
            token_log_probs,
            inputs["logits"],
            inputs["token_ids"],
            backend=place.row,
            **ALL_FLOATS,
        )


@by_dtype
@pytest.mark.parametrize("option", OPTIONS)
def test_bits_do_not_depend_on_the_batch(place: Place, option: str, dtype: torch.dtype) -> None:
    # The same 4 rows up to 1024 times: every copy must have the bits that the 4 have together, and
    # these the bits that each has alone.
    ids, options = OPTIONS[option](torch.Generator().manual_seed(0))
    logits = CASES[0].logits(N, V, dtype=dtype)
    upstream = [torch.randn(ids.shape), torch.randn(N)]
    inputs = {"logits": logits, "token_ids": ids, "upstream": upstream, **options}
    together = step(place, place.holds(rows_of(inputs, torch.arange(N))))
    for times in (2, FEW // N, FEW // N + 1, 1024) if place.gpu else (2, FEW // N + 1):
        many = step(place, place.holds(rows_of(inputs, torch.arange(N).repeat(times))))
        for at, (ours, expected) in enumerate(zip(many, together, strict=True)):
            copies = bits(ours).view(times, *expected.shape)
            assert (copies == bits(expected)).all(), f"result {at} among {times * N} rows"
    for row in range(N):
        alone = step(place, place.holds(rows_of(inputs, torch.tensor([row]))))
        assert_same_bits(alone, [result[row : row + 1] for result in together], f"row {row}:")


def rows_of(value: Any, index: Tensor) -> Any:
    """Inputs of the rows at `index` alone; kept ids come sorted."""
    if isinstance(value, dict):
        return {name: rows_of(one, index) for name, one in value.items()}
    if isinstance(value, list):
        return [rows_of(one, index) for one in value]
    if isinstance(value, KeepSet):
        return KeepSet.from_mask(value.to_mask(V)[index])
    return value[index] if isinstance(value, Tensor) else value


@by_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
def test_top1_is_the_first_argmax(place: Place, case: Case, dtype: torch.dtype) -> None:
    logits = case.logits(FEW + 1, V, dtype=dtype, seed=1)
    best = logits.double().argmax(-1)  # on a CPU torch names the first among equals
    ids, logits = place.holds([torch.stack([best, (best + 1) % V], -1), logits])
    for rows in (3, FEW + 1):
        out = token_log_probs(logits[:rows], ids[:rows], return_top1=True, backend=place.row)
        assert out.top1.tolist() == [[True, False]] * rows


@pytest.mark.parametrize("rows", [5, FEW + 1])
def test_bad_values_make_their_rows_nan(gpu_place: Place, rows: int) -> None:
    inputs = gpu_place.holds(problem(rows, V, torch.bfloat16))
    inputs["temperature"] = torch.full((rows,), 0.7, device="cuda")
    inputs["loss_mask"] = torch.ones(rows, dtype=torch.bool, device="cuda")
    inputs["loss_mask"][3] = False  # what a masked row holds is never looked at
    clean = step(gpu_place, inputs)
    inputs["token_ids"][torch.tensor([0, 1, 3], device="cuda")] = torch.tensor(
        [-1, V, -(2**40)], device="cuda"
    )
    inputs["temperature"][2] = 0.0
    with gpu_place.without_sync():
        found = step(gpu_place, inputs)
    log_probs, entropy = found[0], found[1]
    assert log_probs[:3].isnan().all()
    assert entropy[2].isnan()
    assert log_probs[3] == 0
    assert_same_bits([one[3:] for one in found], [one[3:] for one in clean])


# ---- layout and memory --------------------------------------------------------------------------


@by_dtype
@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__.strip("_"))
def test_a_view_is_read_where_it_lies(
    place: Place, view: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    plain = problem(15, 1031, dtype)
    logits = view(plain["logits"].view(3, 5, 1031))  # NaN lies around it
    inputs = place.holds({
        "logits": logits,
        "token_ids": plain["token_ids"].view(3, 5),
        "upstream": [one.view(3, 5) for one in plain["upstream"]],
    })  # fmt: skip
    assert inputs["logits"].stride() == logits.stride()
    expected = step(place, {**inputs, "logits": inputs["logits"].contiguous()})
    assert_same_bits(step(place, inputs), expected)


@by_dtype
def test_shifted_one_element_at_a_time(place: Place, dtype: torch.dtype) -> None:
    # Every alignment of a 16-byte load, in and out; NaN sits right before, after and in between.
    inputs = place.holds(problem(2, V, dtype))
    expected = step(place, inputs)
    for shift in range(1, 18):
        buffer = torch.full((2 * V + 40,), torch.nan, dtype=dtype, device=place.device)
        view = buffer.as_strided((2, V), (V + 3, 1), shift)
        view.copy_(inputs["logits"])
        assert_same_bits(step(place, {**inputs, "logits": view}), expected, f"shift {shift}:")
        in_place = step(place, {**inputs, "logits": view}, inplace_backward=True)
        assert in_place[-1].data_ptr() == view.data_ptr()
        assert_same_bits(in_place, expected, f"in place, shift {shift}:")
        view.fill_(torch.nan)
        assert buffer.isnan().all(), f"shift {shift}: written outside the view"


@by_dtype
@pytest.mark.parametrize("shape", [(512, 32_768), (64, 151_936)], ids=["many rows", "few rows"])
def test_memory(place: Place, shape: tuple[int, int], dtype: torch.dtype) -> None:
    rows, columns = shape if place.gpu else (16, 8_192)
    inputs = place.holds(problem(rows, columns, dtype))
    logits, ids, upstream = (inputs[name] for name in _POSITIONAL)
    leaf = logits.detach().requires_grad_()

    def forward() -> Any:
        return token_log_probs(leaf, ids, backend=place.row, **ALL)[:2]

    def backward(outputs: Any) -> None:
        torch.autograd.grad(outputs, leaf, upstream)

    def in_place() -> Any:
        return token_log_probs(leaf, ids, backend=place.row, inplace_backward=True, **ALL)[:2]

    backward(forward())  # whatever is made once is made now
    small = logits.nbytes // 20  # a few floats a row; partial sums where few rows are split
    assert 0 < place.peak_bytes(forward) <= small
    outputs = forward()
    assert logits.nbytes <= place.peak_bytes(lambda: backward(outputs)) <= logits.nbytes + small
    outputs = in_place()
    assert place.peak_bytes(lambda: backward(outputs)) <= small


def test_more_than_two_to_the_31_elements(place: Place) -> None:
    # 64 different rows 257 times: 2.5e9 elements, 5 GB of logits and as much of gradient.
    rows, columns, times = (64, 151_936, 257) if place.gpu else (8, 1_031, 34)
    if 3.5 * rows * columns * times * 2 > place.free_bytes():
        pytest.skip(f"needs 17 GB of free GPU memory, {place.free_bytes() / 1e9:.0f} are")
    alone = place.holds(problem(rows, columns, torch.bfloat16))
    expected = step(place, alone)
    many = {
        "logits": alone["logits"].repeat(times, 1),
        "token_ids": alone["token_ids"].repeat(times),
        "upstream": [one.repeat(times) for one in alone["upstream"]],
    }
    for options in ({}, {"inplace_backward": True}):  # the second spoils the logits
        found = step(place, many, **options)
        for at in range(0, rows * times, rows):
            part = [one[at : at + rows] for one in found]
            assert_same_bits(part, expected, f"{options} rows from {at}:")
        del found, part


def test_what_the_sanitizers_run(place: Place) -> None:
    assert small_calls.run(place.row, place.device) > 0


# ---- streams, graphs, compilers -----------------------------------------------------------------


@by_dtype
@pytest.mark.parametrize("rows", [5, FEW + 1])
def test_runs_on_the_callers_stream(place: Place, rows: int, dtype: torch.dtype) -> None:
    inputs = place.holds(rich_problem(rows, V, dtype))
    expected = step(place, inputs)
    late = {**inputs, "logits": torch.full_like(inputs["logits"], torch.nan)}
    with place.busy_stream():  # a kernel on any other stream would read NaN
        late["logits"].copy_(inputs["logits"])
        found = step(place, late)
    assert_same_bits(found, expected)


def test_runs_on_the_device_of_its_logits(gpu_place: Place) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs a second GPU")
    inputs = problem(5, V, torch.bfloat16)
    expected = step(gpu_place, gpu_place.holds(inputs))
    other = type(gpu_place)(gpu_place.row, "cuda:1")
    found = step(other, other.holds(inputs))
    assert {one.device.index for one in found} == {1}
    assert torch.cuda.current_device() == 0
    assert_same_bits([one.cuda(0) for one in found], expected)


@pytest.mark.parametrize("option", OPTIONS)
def test_the_host_never_waits(place: Place, option: str) -> None:
    ids, options = OPTIONS[option](torch.Generator().manual_seed(0))
    logits, upstream = CASES[0].logits(N, V), [torch.randn(ids.shape), torch.randn(N)]
    inputs = place.holds({"logits": logits, "token_ids": ids, "upstream": upstream, **options})
    expected = step(place, inputs)  # Triton compiles, and may wait
    with place.without_sync():
        found = step(place, inputs)
    assert_same_bits(found, expected)


def test_a_wait_would_be_noticed(gpu_place: Place) -> None:
    with gpu_place.without_sync(), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(1, device="cuda").item()


@by_dtype
@pytest.mark.parametrize("draw", [problem, rich_problem], ids=["plain", "rich"])
@pytest.mark.parametrize("rows", [5, FEW + 1])
def test_a_replayed_graph_sees_new_inputs(
    place: Place, rows: int, draw: Callable[..., dict[str, Any]], dtype: torch.dtype
) -> None:
    inputs = place.holds(draw(rows, V, dtype))
    again = place.recorded(lambda: step(place, inputs))
    for seed in (1, 2, 3):
        fresh = place.holds(draw(rows, V, dtype, seed))
        for held, new in zip(tensors(inputs), tensors(fresh), strict=True):
            held.copy_(new)
        found = [one.clone() for one in again()]
        assert_same_bits(found, step(place, fresh), f"seed {seed}:")


@pytest.mark.parametrize(
    ("compiler", "dtype"),
    [*(("aot_eager", dtype) for dtype in DTYPES), ("inductor", torch.bfloat16)],
    ids=str,
)
def test_compiled_without_a_break(place: Place, compiler: str, dtype: torch.dtype) -> None:
    if compiler == "inductor" and not place.gpu:
        pytest.skip("tests/ops runs it: a C++ compiler takes tens of seconds")
    inputs = place.holds(rich_problem(5, V, dtype))
    logits, ids = inputs["logits"], inputs["token_ids"]
    options = {name: inputs[name] for name in ("support", "temperature", "loss_mask")}
    options |= ALL_FLOATS

    def op(logits: Tensor, ids: Tensor, **options: Any) -> Any:
        return token_log_probs(logits, ids, backend=place.row, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's, of itself and of the GPU's settings
        torch.compiler.reset()
        compiled = torch.compile(op, backend=compiler, fullgraph=True)
        ours = outputs_and_gradients(compiled, logits, ids, **options)
    options["backend"] = "torch"
    yardstick = outputs_and_gradients(token_log_probs, logits, ids, **options)
    truth = outputs_and_gradients(token_log_probs, *in_float64(logits, ids), **options)
    assert_all_within_budget(ours, yardstick, truth)


@pytest.mark.gpu
def test_ten_lengths_and_temperatures_compile_once(gpu_place: Place) -> None:
    if gpu_place.row != "triton":
        pytest.skip(f"{gpu_place.row}: compiled ahead of time")
    from logpi.ops.token_log_probs import _triton_kernels

    def compiled() -> int:
        caches = _triton_kernels.forward_kernel.device_caches.values()
        return sum(len(cache[0]) for cache in caches)

    counts = []
    for step in range(10):
        logits = torch.randn(300 + 7 * step, 256, device=gpu_place.device)
        ids = torch.zeros(len(logits), dtype=torch.int64, device=gpu_place.device)
        token_log_probs(logits, ids, temperature=1.0 / (1 + step), backend="triton")
        counts.append(compiled())
    assert counts == counts[:1] * 10
