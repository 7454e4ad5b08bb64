"""gae on every row: against the loop that defines it, its mask, its whitening, its contract."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from logpi import BackendError
from logpi.advantages import gae
from logpi.ops.gae import BACKENDS, Gae
from logpi.testing import assert_within_budget, bits, nan_empty
from rows import ROWS, Row, serve

OURS = [row for row in ROWS if row.backend in {row.name for row in BACKENDS}]
RATES = [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0), (0.0, 0.7), (1.0, 0.5)]
B, T = 5, 37


@pytest.fixture(params=OURS, ids=str)
def row(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Row]:
    if request.param.interpreted:
        from logpi.ops.gae import _triton

        monkeypatch.setattr(_triton, "BLOCK", 16)  # three blocks a row; the interpreter is slow
    yield from serve(request.param)


def problem(*shape: int, seed: int = 0, masked: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(*shape, generator=random) for _ in range(2))
    return rewards, values, torch.rand(*shape, generator=random) >= masked


def looped(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Gae:
    """One token after the other, in Python's floats, as trainers do it."""
    advantages, returns = torch.zeros_like(rewards), torch.zeros_like(rewards)
    for b, row in enumerate(mask.tolist()):
        value = advantage = 0.0
        for t in reversed(range(len(row))):
            if row[t]:
                r, v = float(rewards[b, t]), float(values[b, t])
                advantage = r + gamma * value - v + gamma * lam * advantage
                value = v
                advantages[b, t], returns[b, t] = advantage, advantage + v
    return Gae(advantages, returns)


def whitened(x: Tensor, mask: Tensor) -> Tensor:
    live = x[mask]
    out = torch.zeros_like(x)
    if len(live) > 1:
        out[mask] = (live - live.mean()) / (live.var() + 1e-8).sqrt()
    return out


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize(("gamma", "lam"), RATES)
def test_the_loop(row: Row, gamma: float, lam: float, whiten: bool) -> None:
    rewards, values, mask = problem(B, T)
    ours = gae(rewards, values, mask, gamma=gamma, lam=lam, whiten=whiten, backend=row.backend)
    truth = looped(rewards.double(), values.double(), mask, gamma, lam)
    advantages = whitened(truth.advantages, mask) if whiten else truth.advantages
    for name, x, true in zip(Gae._fields, ours, (advantages, truth.returns), strict=True):
        # no yardstick: float64 inside and one rounding are what is promised
        assert_within_budget(x, true.float(), true, name=name, ulps=1)


def test_the_definition_in_float64() -> None:
    rewards, values, mask = (x.double() for x in problem(B, T))
    for gamma, lam in RATES:
        ours = gae(rewards, values, mask, gamma=gamma, lam=lam, whiten=False)
        for x, true in zip(ours, looped(rewards, values, mask.bool(), gamma, lam), strict=True):
            torch.testing.assert_close(x, true, rtol=1e-13, atol=1e-13)


def test_a_mean_far_from_0_costs_no_digits(row: Row) -> None:
    rewards, values, mask = problem(B, T)
    values = values * 1e-3 - 1000.0
    ours = gae(rewards * 1e-3, values, mask, gamma=0.5, backend=row.backend)
    # the inputs are rounded: what they are in float64 is the truth
    truth = gae((rewards * 1e-3).double(), values.double(), mask, gamma=0.5)
    assert_within_budget(ours.advantages, truth.advantages.float(), truth.advantages, ulps=1)


def test_rates_are_not_rounded(row: Row) -> None:
    """To float32, the scalars of some launches."""
    options = {"whiten": False, "backend": row.backend}
    rewards, values, mask = torch.full((1, 9), 0.01), torch.ones(1, 9), torch.ones(1, 9)
    ours = gae(rewards, values, mask, gamma=0.99, lam=0.0, **options).advantages[0, :-1]
    assert ours.tolist() == pytest.approx([rewards[0, 0].item() + 0.99 - 1] * 8, rel=1e-6, abs=0.0)
    last, nothing = torch.tensor([1.0]), torch.zeros(1, 40)
    ours = gae(last, nothing, nothing == 0, gamma=0.7, **options).returns
    assert ours[0, 0].item() == pytest.approx(0.7**39, rel=1.2e-7, abs=0.0)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("whiten", [False, True])
def test_a_masked_token_is_not_there(row: Row, whiten: bool, junk: float) -> None:
    rewards, values, mask = problem(3, 21, seed=1)
    mask[2] = False
    options = {"gamma": 0.9, "lam": 0.8, "whiten": whiten, "backend": row.backend}
    clean = gae(rewards, values, mask, **options)
    dirty = gae(rewards.where(mask, junk), values.where(mask, junk), mask, **options)
    for x, y in zip(clean, dirty, strict=True):
        assert torch.equal(bits(x), bits(y))
        assert torch.equal(x[~mask], torch.zeros(int((~mask).sum())))
    # as if the tokens were cut out
    short = [x[:1, mask[0]] for x in (rewards, values)]
    alone = gae(*short, torch.ones_like(short[0]), **(options | {"whiten": False}))
    assert torch.equal(alone.returns[0], clean.returns[0, mask[0]])


@pytest.mark.parametrize("live", [0, 1])
def test_none_or_one_token(row: Row, live: int) -> None:
    rewards, values, _ = problem(2, 5)
    mask = torch.zeros(2, 5)
    mask[1, 3] = live
    out = gae(rewards, values, mask, backend=row.backend)
    assert torch.equal(out.advantages, torch.zeros(2, 5))
    assert torch.equal(out.returns, torch.where(mask > 0, rewards, 0.0))


def test_two_tokens_are_whitened(row: Row) -> None:
    out = gae(torch.tensor([[3.0, 1.0]]), torch.zeros(1, 2), torch.ones(1, 2), backend=row.backend)
    assert out.returns.tolist() == [[4.0, 1.0]]
    assert out.advantages[0].tolist() == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)], rel=1e-6)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_nothing(row: Row, shape: tuple[int, int]) -> None:
    assert gae(*problem(*shape), backend=row.backend).returns.shape == shape


def test_a_sequences_reward_goes_to_its_last_token(row: Row) -> None:
    _, values, mask = problem(4, 19, seed=2)
    mask[3] = False
    rewards = torch.tensor([1.0, -2.0, 3.0, 4.0])
    a_token = torch.zeros(4, 19)
    for b, live in enumerate(mask.tolist()):
        if any(live):
            a_token[b, max(t for t, yes in enumerate(live) if yes)] = rewards[b]
    for one, other in zip(
        *(gae(r, values, mask, gamma=0.9, backend=row.backend) for r in (rewards, a_token)),
        strict=True,
    ):
        assert torch.equal(bits(one), bits(other))


def test_rows_do_not_know_of_each_other(row: Row) -> None:
    rewards, values, mask = problem(9, 33, seed=3)
    rewards[4, 7] = math.nan
    mask[4, 7] = True
    whole = gae(rewards, values, mask, whiten=False, backend=row.backend)
    for n in range(9):
        one = [x[n : n + 1] for x in (rewards, values, mask)]
        alone = gae(*one, whiten=False, backend=row.backend)
        for x, y in zip(alone, whole, strict=True):
            assert torch.equal(bits(x[0]), bits(y[n]))
    assert whole.returns[4, 8:].isfinite().all()  # what comes after a token knows nothing of it
    assert whole.returns[4, :8][mask[4, :8]].isnan().all()


def test_all_is_written_and_nothing_over(row: Row) -> None:
    rewards, values, mask = problem(B, T)
    before = [x.clone() for x in (rewards, values, mask)]
    plain = gae(rewards, values, mask, gamma=0.9, backend=row.backend)
    with nan_empty():
        again = gae(rewards, values, mask, gamma=0.9, backend=row.backend)
    for one, other in itertools.chain(
        zip(plain, again, strict=True), zip(before, (rewards, values, mask), strict=True)
    ):
        assert torch.equal(bits(one), bits(other))


def test_views_and_narrow_dtypes(row: Row) -> None:
    rewards, values, mask = (x.t().contiguous().t() for x in problem(B, T))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        narrow = rewards.to(dtype), values.to(dtype)
        ours = gae(*narrow, mask, gamma=0.9, backend=row.backend)
        wide = (x.float().contiguous() for x in narrow)
        again = gae(*wide, mask.contiguous(), gamma=0.9, backend=row.backend)
        assert ours.returns.dtype == torch.float32
        assert torch.equal(ours.advantages, again.advantages)


@given(
    st.integers(0, 10_000),
    st.integers(1, 40),
    st.sampled_from(RATES),
    st.booleans(),
)
def test_rows_agree(seed: int, length: int, rates: tuple[float, float], whiten: bool) -> None:
    arguments = problem(2, length, seed=seed)
    options = {"gamma": rates[0], "lam": rates[1], "whiten": whiten}
    cpu, torchs = (gae(*arguments, **options, backend=name) for name in ("cpu", "torch"))
    for x, y in zip(cpu, torchs, strict=True):
        torch.testing.assert_close(x, y, rtol=3e-7, atol=1e-6)


def test_threads_change_no_bit() -> None:
    arguments = problem(40, 1000)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(gae(*arguments, gamma=0.99, lam=0.95, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_no_gradient(row: Row) -> None:
    rewards, values, mask = problem(2, 4)
    out = gae(rewards, values.requires_grad_(), mask, backend=row.backend)
    assert not out.returns.requires_grad
    assert not out.advantages.requires_grad


# ---- under a compiler ---------------------------------------------------------------------------


def test_one_graph_with_the_bits_of_eager(row: Row) -> None:
    if row.isa is not None:
        pytest.skip("the compiled graph calls the same op whatever the ISA")
    torch._dynamo.reset()

    def run(rewards: Tensor, values: Tensor, mask: Tensor) -> Gae:
        return gae(rewards, values, mask, gamma=0.9, lam=0.8, backend=row.backend)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    arguments = problem(B, T)
    for one, other in zip(compiled(*arguments), run(*arguments), strict=True):
        assert torch.equal(bits(one), bits(other))
    torch._dynamo.reset()


def test_the_registered_op_keeps_torchs_rules() -> None:
    from logpi.ops.gae import _library  # noqa: F401  registers it

    torch.library.opcheck(torch.ops.logpi.gae.default, ("cpu", *problem(2, 5), 0.9, 0.8, True))


# ---- the contract -------------------------------------------------------------------------------

R, V, M = problem(2, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((R, V, M[0]), {}, ValueError, r"^loss_mask: expected shape \[B, T\], got \(3,\)$"),
        ((R, V[:1], M), {}, ValueError, r"^values: expected shape \(2, 3\), got \(1, 3\)$"),
        ((R[:, 0][:1], V, M), {}, ValueError, r"^rewards: expected shape \(2,\), got \(1,\)$"),
        ((R[None], V, M), {}, ValueError, r"^rewards: expected shape \(2, 3\), got"),
        ((R.int(), V, M), {}, TypeError, r"^rewards: expected float32 or .*, got int32$"),
        ((R, V.tolist(), M), {}, TypeError, r"^values: expected a torch.Tensor, got list$"),
        ((R, V.double(), M), {}, TypeError, r"^values: expected float64 with float64 rewards"),
        ((R, V, M), {"gamma": 1.1}, ValueError, r"^gamma: expected a number in \[0, 1\], got 1.1"),
        ((R, V, M), {"lam": math.nan}, ValueError, r"^lam: expected a finite number, got nan$"),
        ((R, V, M), {"lam": "1"}, TypeError, r"^lam: expected a number, got str$"),
        ((R, V, M), {"whiten": 1}, TypeError, r"^whiten: expected a bool, got int$"),
        ((R, V, M), {"backend": "best"}, ValueError, r"^backend: expected one of 'auto', "),
        ((R.to("meta"), V, M), {}, ValueError, r"^rewards: expected a tensor on cpu, got"),
    ],
)
def test_errors_name_the_argument(
    arguments: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        gae(*arguments, **options)


def test_a_named_row_does_not_fall_back() -> None:
    with pytest.raises(BackendError, match="cpu: serves float32 rewards and values, got float64"):
        gae(R.double(), V.double(), M, backend="cpu")
