"""sample_action_tokens on every row: the draw, its numbers, replay, rows without a distribution."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from logpi import ActionCodec, ActionSample, BackendError, sample_action_tokens, token_log_probs
from logpi.core.draws import uniforms
from logpi.ops.action_sampling import BACKENDS
from logpi.testing import assert_within_budget, bits, nan_empty
from rows import ROWS, Row, serve

OURS = [row for row in ROWS if row.backend in {row.name for row in BACKENDS}]
PLAIN = ActionCodec(num_bins=64, vocab_size=100)
ROBOT = ActionCodec(
    num_bins=64, vocab_size=100, low=[0, -3, 5], high=[1, 4, 6], mask=[True, True, False]
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
V = 104  # four of padding


@pytest.fixture(params=OURS, ids=str)
def row(request: pytest.FixtureRequest) -> Iterator[Row]:
    yield from serve(request.param)


def problem(*lead: int, codec: ActionCodec = PLAIN, spread: float = 3.0, seed: int = 0) -> Tensor:
    """Logits `[.., V]` that are NaN and inf wherever they are no action's."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.full((*lead, codec.vocab_size + 4), math.nan)
    logits[..., codec.vocab_size + 1] = math.inf
    action = torch.randn(*lead, codec.num_bins, generator=random) * spread
    logits[..., codec.support] = action
    return logits


def sample(logits: Tensor, row: Row | str = "torch", **options: Any) -> ActionSample:
    options = {"codec": PLAIN, "seed": 7, "step": 3, "return_entropy": True} | options
    backend = row if isinstance(row, str) else row.backend
    return sample_action_tokens(logits, backend=backend, **options)


def assert_same(one: ActionSample, other: ActionSample) -> None:
    for name, x, y in zip(ActionSample._fields, one, other, strict=True):
        assert torch.equal(bits(x), bits(y)), name


def slice_of(logits: Tensor, codec: ActionCodec = PLAIN) -> Tensor:
    return logits[..., codec.support].double()


# ---- the draw -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.05, 1.0, 1.6])
@pytest.mark.parametrize("num_bins", [2, 3, 64, 255, 256, 257, 700])
def test_inverse_of_the_distribution_function(row: Row, num_bins: int, temperature: float) -> None:
    codec = ActionCodec(num_bins, num_bins + 9)
    logits = problem(40, codec=codec)
    ours = sample(logits, row, codec=codec, temperature=temperature)
    p = torch.softmax(slice_of(logits, codec) / temperature, -1)
    u = uniforms(7, 3, torch.arange(40))
    upto = p.cumsum(-1)
    bins = (upto <= u[:, None]).sum(-1)
    assert (upto - u[:, None]).abs().min() > 1e-9  # none is a matter of rounding
    assert ours.token_ids.tolist() == (bins + 9).tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["plain", "peaked", "flat", "far", "minus inf", "one"])
def test_numbers_within_the_budget(row: Row, kind: str, dtype: torch.dtype) -> None:
    logits = problem(6, 9, spread=0.0 if kind == "flat" else 3.0)
    if kind == "far":
        logits += 1e4
    if kind == "minus inf":
        logits[..., 40:80] = -math.inf
    if kind == "one":
        logits[..., 37:] = -math.inf
    logits = logits.to(dtype)
    temperature = 0.05 if kind == "peaked" else 1.3
    ours = sample(logits, row, temperature=temperature)
    fields = {"log_probs": ours.log_probs, "entropy": ours.entropy}

    def softmaxed(x: Tensor) -> dict[str, Tensor]:
        log_p = torch.log_softmax(x / temperature, -1)
        drawn = log_p.gather(-1, (ours.token_ids - 36)[..., None])[..., 0]
        return {"log_probs": drawn, "entropy": -(log_p.exp() * log_p.clamp(min=-1e30)).sum(-1)}

    torchs = softmaxed(slice_of(logits).float())
    for name, truth in softmaxed(slice_of(logits)).items():
        assert_within_budget(fields[name], torchs[name], truth, name=name)
    assert (ours.log_probs <= 0).all()
    assert (ours.entropy >= 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_row_has_the_same_bits(row: Row, dtype: torch.dtype) -> None:
    """Tokens because the weights and their sums are exact; the rest because float64 is rounded
    once, and the chance that two roundings part is 1e-8 a number."""
    logits = problem(5, 3, seed=4).to(dtype)
    for options in ({}, {"temperature": 0.1}, {"greedy": True}, {"codec": ROBOT}):
        assert_same(sample(logits, row, **options), sample(logits, "torch", **options))


def test_peaked_rows_keep_their_digits(row: Row) -> None:
    logits = problem(1, spread=0.0)
    logits[..., 50] += 40.0
    ours = sample(logits, row)
    rest = 63 * math.exp(-40.0)
    assert ours.log_probs.item() == pytest.approx(-math.log1p(rest), rel=1e-6)
    assert ours.entropy.item() == pytest.approx(math.log1p(rest) + 40 * rest, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 1.6])
def test_frequencies(row: Row, temperature: float) -> None:
    draws = 300 if row.tiny else 100_000 if row.backend == "cpu" else 3_000
    assert_frequencies(row.backend, temperature, 1, draws)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.1, 1.0, 1.6])
def test_frequencies_of_ten_million(temperature: float) -> None:
    assert_frequencies("cpu", temperature, 10, 1_000_000)


def assert_frequencies(backend: str, temperature: float, steps: int, draws: int) -> None:
    """Chi-square against float64, bins that expect fewer than 10 pooled; false alarm 6e-7."""
    num_bins, spread = (16, 0.7) if draws < 1000 else (256, 2.5)
    codec = ActionCodec(num_bins)
    row = torch.randn(num_bins, generator=torch.Generator().manual_seed(5)) * spread * temperature
    counts = torch.zeros(num_bins, dtype=torch.int64)
    for step in range(steps):
        options = {"codec": codec, "step": step, "temperature": temperature}
        ids = sample(row.expand(draws, -1), backend, **options).token_ids
        counts += torch.bincount(ids - codec.support.start, minlength=num_bins)
    expected = torch.softmax(row.double() / temperature, -1) * (draws * steps)
    rare = expected < 10
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]]).double()
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    keep = expected > 0
    degrees = int(keep.sum()) - 1
    assert degrees > 3
    chi = ((counts - expected).square() / expected)[keep].sum().item()
    assert chi < degrees + 5 * math.sqrt(2 * degrees) + 10


def test_greedy_is_the_first_of_the_largest(row: Row) -> None:
    logits = problem(2, 3)
    logits[..., 60] = logits[..., 70] = logits[..., 95] = 30.0
    ours = sample(logits, row, greedy=True, codec=ROBOT, temperature=2.0)
    assert (ours.token_ids == 60).all()
    assert_within_budget(ours.log_probs, ours.log_probs, token_log_probs_of(logits, ours, 2.0))
    assert torch.equal(ours.token_ids, sample(logits, row, greedy=True, seed=0, step=0).token_ids)


def token_log_probs_of(logits: Tensor, ours: ActionSample, temperature: float) -> Tensor:
    given = {"support": PLAIN.support, "temperature": temperature, "backend": "torch"}
    return token_log_probs(logits.double(), ours.token_ids, **given).log_probs


# ---- replay -------------------------------------------------------------------------------------


def test_a_row_acts_alike_in_any_batch(row: Row) -> None:
    logits, ids = problem(21, seed=1), torch.arange(21) * 1000 + 2**40
    whole = sample(logits, row, row_ids=ids)
    order = torch.randperm(21, generator=torch.Generator().manual_seed(2))
    for part in ([4], [20, 3], order.tolist()):
        again = sample(logits[part], row, row_ids=ids[part])
        assert_same(again, ActionSample._make(x[part] for x in whole))
    plain = sample(logits, row)
    assert_same(plain, sample(logits, row, row_ids=torch.arange(21)))
    assert not torch.equal(plain.token_ids, whole.token_ids)


def test_seed_step_and_nothing_else(row: Row) -> None:
    logits = problem(40, spread=0.1)
    first = sample(logits, row)
    torch.manual_seed(99)
    assert_same(first, sample(logits, row))
    assert_same(first, sample(logits, row, step=torch.tensor(3)))
    for other in ({"seed": 8}, {"step": 4}, {"step": 3 + 2**32}, {"seed": 7 + 2**32}):
        assert (sample(logits, row, **other).token_ids != first.token_ids).sum() > 20


def test_shapes_and_strides(row: Row) -> None:
    flat = problem(2 * 3 * 6, codec=ROBOT)
    expected = sample(flat.view(12, 3, V), row, codec=ROBOT)
    for lead in ((2, 3, 6), (2, 18), (36,), (2, 1, 3, 6)):
        ours = sample(flat.view(*lead, V), row, codec=ROBOT)
        assert ours.token_ids.shape == ours.actions.shape == lead
        assert_same(ActionSample._make(x.flatten() for x in ours),
                    ActionSample._make(x.flatten() for x in expected))  # fmt: skip
    whole = torch.full((2, 4, 6, V + 3), math.nan)
    whole[:, :3, :, 1:-2] = flat.view(2, 3, 6, V)  # neither whole rows nor aligned ones
    ours = sample(whole[:, :3, :, 1:-2], row, codec=ROBOT)
    assert_same(ours, sample(flat.view(2, 3, 6, V), row, codec=ROBOT))
    alone = sample(flat[..., ROBOT.support], row, codec=ROBOT)  # nothing but the slice
    assert_same(alone, sample(flat, row, codec=ROBOT))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0)])
def test_nothing(row: Row, shape: tuple[int, ...]) -> None:
    ours = sample(torch.zeros(*shape, V), row)
    assert {tuple(x.shape) for x in ours} == {shape}


def test_threads_change_no_bit() -> None:
    logits, before, found = problem(500), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(sample(logits, "cpu"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert_same(found[0], other)


def test_all_is_written_and_nothing_over(row: Row) -> None:
    logits = problem(7, 3)
    before = logits.clone()
    plain = sample(logits, row, codec=ROBOT)
    with nan_empty():
        again = sample(logits, row, codec=ROBOT)
    assert_same(plain, again)
    assert torch.equal(bits(before), bits(logits))
    assert sample(logits, row, return_entropy=False).entropy is None


# ---- actions, temperatures, hidden states -------------------------------------------------------


def test_actions_are_the_codecs(row: Row) -> None:
    logits = problem(2, 4, 6)  # a chunk of two steps
    ours = sample(logits, row, codec=ROBOT)
    centres = ROBOT.decode(ours.token_ids, dtype=torch.float64)
    assert torch.equal(ours.actions, ROBOT.unnormalize(centres).float())
    plain = sample(logits, row)
    assert torch.equal(plain.actions, PLAIN.decode(plain.token_ids))


def test_a_temperature_a_row(row: Row) -> None:
    logits = problem(3, 4)
    temperatures = torch.tensor([0.1, 1.0, 1.6, 7.0])
    ours = sample(logits, row, temperature=temperatures.expand(3, 4))
    for at, temperature in enumerate(temperatures.tolist()):
        alone = sample(logits[:, at], row, temperature=temperature, row_ids=torch.arange(at, 12, 4))
        assert torch.equal(ours.token_ids[:, at], alone.token_ids)
        torch.testing.assert_close(ours.log_probs[:, at], alone.log_probs)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_hidden_states_meet_no_other_row_of_the_head(
    row: Row, dtype: torch.dtype, with_bias: bool
) -> None:
    random = torch.Generator().manual_seed(3)
    x, weight = (torch.randn(*s, 32, generator=random).to(dtype) for s in ((5, 6), (V,)))
    bias = torch.randn(V, generator=random).to(dtype) if with_bias else None
    part = weight[PLAIN.support].clone()
    logits = torch.nn.functional.linear(x, part, bias[PLAIN.support] if with_bias else None)
    weight[:36] = weight[100:] = math.nan
    ours = sample(x, row, weight=weight, bias=bias, codec=ROBOT)
    assert_same(ours, sample(logits, row, codec=ROBOT))
    alone = bias[PLAIN.support] if with_bias else None
    assert_same(ours, sample(x, row, weight=part, bias=alone, codec=ROBOT))


def test_autocast_multiplies_in_its_own_dtype() -> None:
    x, weight = torch.randn(4, 32), torch.randn(V, 32)
    narrow = sample(x.bfloat16(), weight=weight.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(sample(x, weight=weight), narrow)


def test_float64_is_the_definitions() -> None:
    logits = problem(5).double()
    ours = sample(logits, "auto")
    assert ours.log_probs.dtype == ours.entropy.dtype == torch.float64
    truth = token_log_probs_of(logits, ours, 1.0)
    assert (ours.log_probs - truth).abs().max() < 1e-9
    with pytest.raises(BackendError, match="cpu: serves float32, bfloat16 and float16 logits"):
        sample(logits, "cpu")


def test_no_gradient(row: Row) -> None:
    logits = problem(3).requires_grad_()
    weight = torch.randn(V, V, requires_grad=True)
    for ours in (sample(logits, row), sample(torch.zeros_like(logits), row, weight=weight)):
        assert not any(x.requires_grad for x in ours)


# ---- rows without a distribution ----------------------------------------------------------------


@pytest.mark.parametrize("junk", ["nan", "inf", "all -inf", "all nan", "temperature"])
def test_a_row_without_a_distribution(row: Row, junk: str) -> None:
    logits, good = problem(6), torch.arange(6) != 4
    temperature = torch.ones(6)
    if junk == "temperature":
        temperature[4] = -1.0
    else:
        which = PLAIN.support if junk.startswith("all") else 50
        logits[4, which] = float(junk.removeprefix("all "))
    name = "temperature" if junk == "temperature" else "logits"
    if row.reads_values:
        with pytest.raises(ValueError, match=rf"^{name}: expected .* in row 4$"):
            sample(logits, row, temperature=temperature)
        return
    ours = sample(logits, row, temperature=temperature)
    assert ours.token_ids[4] == 36 + 32
    assert PLAIN.decode(ours.token_ids[4]).abs() < 0.02  # which moves nothing
    for field in ours[1:]:
        assert field[4].isnan()
        assert field[good].isfinite().all()
    clean = sample(problem(6)[good], row, row_ids=torch.arange(6)[good])
    assert_same(ActionSample._make(x[good] for x in ours), clean)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_bad_temperatures_of_a_row_are_reported(row: Row, temperature: float) -> None:
    if row.reads_values:
        pytest.skip("raises: the test above")
    ours = sample(problem(1), row, temperature=torch.tensor([temperature]))
    assert ours.log_probs.isnan().all()


# ---- under a compiler ---------------------------------------------------------------------------


def test_one_graph_with_the_bits_of_eager(row: Row) -> None:
    if row.isa is not None:
        pytest.skip("the compiled graph calls the same op whatever the ISA")
    torch._dynamo.reset()
    codec = ActionCodec(64, 100, low=[0, 0], high=[1, 2])  # whose table is not made yet
    x, weight = torch.randn(3, 4, 8), torch.randn(V, 8)

    def run(x: Tensor, weight: Tensor, step: Tensor) -> ActionSample:
        return sample(x, row, weight=weight, codec=codec, step=step)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for step in (1, 2):
        given = x, weight, torch.tensor(step)
        assert_same(compiled(*given), run(*given))
    torch._dynamo.reset()


def test_the_registered_op_keeps_torchs_rules() -> None:
    from logpi.ops.action_sampling import _library  # noqa: F401  registers it

    op = torch.ops.logpi.action_sampling.default
    given = (problem(2, 3), ROBOT.table(torch.device("cpu")), None, None)
    for entropy in (False, True):
        settings = (torch.arange(6), 6, 64, 36, 36, 1.0, 7, 3, False, entropy)
        torch.library.opcheck(op, ("cpu", *given, *settings))


# ---- the contract -------------------------------------------------------------------------------

X = torch.zeros(2, 3, V)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"logits": X.int()}, TypeError, r"^logits: expected float32 or .*, got int32$"),
        ({"logits": X[0, 0, 0]}, ValueError, r"^logits: .* got a 0-d tensor$"),
        ({"logits": X[..., :99]}, ValueError, r"^logits: expected at least 100 .* or 64 .*99\)$"),
        ({"codec": 3}, TypeError, r"^codec: expected an ActionCodec, got int$"),
        ({"logits": X[:, :2], "codec": ROBOT}, ValueError, r"^logits: .* 3 .*\(2, 2\)$"),
        ({"logits": X[0, 0], "codec": ROBOT}, ValueError, r"^logits: expected a last leading dim"),
        ({"temperature": 0.0}, ValueError, r"^temperature: expected a finite number above 0"),
        ({"temperature": torch.ones(3)}, ValueError, r"^temperature: expected shape \(2, 3\)"),
        ({"temperature": torch.ones(2, 3).int()}, TypeError, r"^temperature: expected float32 or"),
        ({"seed": -1}, ValueError, r"^seed: expected at least 0, got -1$"),
        ({"step": torch.zeros(2).long()}, ValueError, r"^step: expected shape \(\), got \(2,\)$"),
        ({"row_ids": torch.zeros(2, 3)}, TypeError, r"^row_ids: expected int64, got float32$"),
        ({"row_ids": torch.zeros(3).long()}, ValueError, r"^row_ids: expected shape \(2, 3\), got"),
        ({"bias": X[0, 0]}, ValueError, r"^bias: expected None without a weight"),
        ({"weight": X[0]}, ValueError, r"^weight: expected at least 100 .* got shape \(3, 104\)$"),
        ({"weight": X}, ValueError, r"^weight: expected \[V, 104\] .* got shape \(2, 3, 104\)$"),
        ({"weight": torch.zeros(V, 8)}, ValueError, r"^weight: expected \[V, 104\] for hidden_"),
        ({"weight": torch.zeros(V, V).half()}, TypeError, r"^weight: .* got torch.float16$"),
        ({"weight": torch.zeros(V, V), "bias": X[0, 0, :3]}, ValueError, r"^bias: expected shape"),
        ({"backend": "best"}, ValueError, r"^backend: expected one of 'auto', "),
    ],
)
def test_errors_name_the_argument(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sample_action_tokens(**({"logits": X, "codec": PLAIN, "seed": 0, "step": 0} | options))


@given(
    st.integers(0, 10_000),
    st.integers(2, 90),
    st.sampled_from([0.05, 0.7, 1.0, 1.6, 30.0]),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_rows_agree(
    seed: int, num_bins: int, temperature: float, dtype: torch.dtype, greedy: bool
) -> None:
    codec = ActionCodec(num_bins, 100)
    logits = problem(3, codec=codec, seed=seed).to(dtype)
    logits[..., 100 - num_bins // 2] = -math.inf
    options = {"codec": codec, "temperature": temperature, "greedy": greedy, "seed": seed}
    assert_same(sample(logits, "cpu", **options), sample(logits, "torch", **options))
