"""flow_balance_loss on every row: the numbers of the paper's code, its edges and its traps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from flow_problems import ARGUMENTS, B, T, call, check, evaluate, in_float64, problem
from logpi import BackendError, flow_balance_loss
from logpi.ops.flow_balance.op import METRICS
from logpi.testing import allocations, bits

if TYPE_CHECKING:
    from rows import Row

# ---- what the authors' functions gave (float64) -------------------------------------------------


def official() -> dict[str, Tensor]:
    def double(values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    return {
        "log_probs": double([[-0.4, -1.3, -1.2, -0.1], [-0.9, -2.0, -0.2, -9.0]]),
        "ref_log_probs": double([[-0.6, -0.9, -1.5, -0.3], [-0.8, -2.5, -0.1, -7.0]]),
        "old_log_probs": double([[-0.5, -1.0, -2.0, -0.1], [-0.7, -3.0, -0.2, -0.4]]),
        "rewards": double([0.04, -0.06]),
        "log_z": double([0.3, -0.2]),
        "loss_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=torch.bool),
    }


def test_official_vectors() -> None:
    # Their denominators have 1e-8 added, ours are exact: a difference of 6e-9 here.
    ours = evaluate(official(), "torch", upstream=1.0)
    expected = {
        "loss": 0.7582954728,
        "importance_weight": 2.0238298644,
        "ppo_kl": -0.2,
        "gradient of log_probs": [[-0.10249418] * 4, [0.59347758] * 3 + [0.0]],
        "gradient of log_z": [-0.40997673, 1.78043274],
    }
    for name, value in expected.items():
        truth = torch.tensor(value, dtype=torch.float64)
        torch.testing.assert_close(ours[name], truth, rtol=0, atol=1e-7, msg=name)


def test_official_vectors_on_every_row(kernel_row: Row) -> None:
    p = {k: v.float() if v.is_floating_point() else v for k, v in official().items()}
    ours = check(p, kernel_row)
    assert ours["loss"].item() == pytest.approx(0.7582954728, rel=1e-6)


def as_released(p: dict[str, Tensor], weight: Any) -> Tensor:
    """The released loss, line by line: 1e-8 in every mean, advantages along the tokens."""
    mask = p["loss_mask"].double()

    def mean(values: Tensor) -> Tensor:
        return (values * mask).sum(-1) / (mask.sum(-1) + 1e-8)

    along = p["rewards"][:, None].expand_as(mask)
    delta = p["log_z"] + mean(p["log_probs"]) - 15 * mean(along) - mean(p["ref_log_probs"])
    ratio = ((p["log_probs"] - p["old_log_probs"]) * mask).sum(-1).exp()
    return (weight(ratio) * delta**2).mean()


@pytest.mark.parametrize("drift", [0.05, 0.5])
def test_both_weights_are_those_of_code_and_paper(drift: float) -> None:
    p = in_float64(problem(3, drift=drift))
    theirs = as_released(p, lambda ratio: ratio.clamp(max=10.0))
    torch.testing.assert_close(call(p).loss, theirs, rtol=1e-7, atol=0)
    theirs = as_released(p, lambda ratio: ratio.clamp(1 - 0.2, 1 + 0.28))
    ours = call(p, clip_ratio_low=0.2, clip_ratio_high=0.28).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=0)


# ---- every row within the budget ----------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28},
    "no lower bound": {"clip_ratio_low": 1.5, "clip_ratio_high": 3.0},
    "unbounded": {"max_importance_weight": math.inf},
    "reward_scale": {"reward_scale": 0.1, "max_importance_weight": 1.7},
    "num_sequences": {"num_sequences": 33},
    "num_sequences on the device": {"num_sequences": torch.tensor(33)},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("drift", [0.1, 0.5])
def test_every_row_is_exact(kernel_row: Row, drift: float, option: str) -> None:
    for seed in range(2 if kernel_row.tiny else 4):
        check(problem(seed, drift=drift), kernel_row, **OPTIONS[option])


@pytest.mark.parametrize("columns", [1, 2, 15, 16, 17, 1023, 1025, 4097])
def test_every_length(kernel_row: Row, columns: int) -> None:
    check(problem(1, rows=3, columns=columns, drift=0.02), kernel_row)


# The last two: more than a kernel finishes at a time, by a lane each and by two.
@pytest.mark.parametrize(("rows", "columns"), [(1, T), (2, T), (257, 3), (130, 1025)])
def test_every_number_of_sequences(kernel_row: Row, rows: int, columns: int) -> None:
    check(problem(2, rows=rows, columns=columns, drift=0.03), kernel_row)


def test_no_digit_is_lost_over_30k_tokens(row: Row) -> None:
    # In float32, one after another, these sums are off in the fourth digit; in pairs in the sixth.
    p = problem(4, rows=2, columns=30_001, drift=0.002)
    p["log_probs"] += torch.where(torch.arange(30_001) == 0, -3e4, 0.0)
    p["old_log_probs"] += torch.where(torch.arange(30_001) == 0, -3e4, 0.0)
    p["ref_log_probs"] += torch.where(torch.arange(30_001) == 0, -3e4, 0.0)
    p["loss_mask"][:] = True
    check(p, row)


# ---- edges --------------------------------------------------------------------------------------


def test_what_is_masked_leaks_nowhere(row: Row) -> None:
    p = problem(5)
    ours = evaluate(p, row.backend)
    for bad in (math.nan, math.inf, -math.inf):
        dirty = dict(p)
        for name in ARGUMENTS[:3]:
            dirty[name] = p[name].where(p["loss_mask"], bad)
        dirty["rewards"] = p["rewards"].where(p["loss_mask"].any(-1), bad)
        for name, value in evaluate(dirty, row.backend).items():
            assert torch.equal(bits(value), bits(ours[name])), name
    assert torch.all(ours["gradient of log_probs"][~p["loss_mask"]] == 0)
    assert torch.all(ours["gradient of log_probs"][p["loss_mask"]] != 0)


def test_nan_in_a_token_shows(row: Row) -> None:
    for name in ("log_probs", "ref_log_probs", "old_log_probs", "rewards", "log_z"):
        p = problem(5)
        p[name][0] = math.nan
        for options in ({}, {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2}):
            ours = evaluate(p, row.backend, **options)
            assert ours["loss"].isnan(), name
            assert ours["gradient of log_probs"][0].isnan().all(), name
            assert ours["gradient of log_probs"][1:].isfinite().all(), name


def test_an_empty_sequence_adds_its_log_z_squared(row: Row) -> None:
    # As released: means and reward are 0 / 1e-8, the weight exp(0).
    p = problem(6)
    assert not p["loss_mask"][-1].any()
    with_it = evaluate(p, row.backend, upstream=1.0)
    without = evaluate({k: v[:-1] for k, v in p.items()}, row.backend, num_sequences=B)
    log_z = p["log_z"][-1]
    assert with_it["loss"].item() == pytest.approx(
        (without["loss"] + log_z**2 / B).item(), rel=1e-6
    )
    assert with_it["gradient of log_z"][-1].item() == pytest.approx((2 * log_z / B).item())
    assert with_it["loss"].item() == pytest.approx(
        as_released(in_float64(p), lambda ratio: ratio.clamp(max=10.0)).item(), rel=1e-6
    )


def test_nothing_but_empty_sequences(row: Row) -> None:
    p = problem(6)
    p["loss_mask"][:] = False
    p["log_z"][:] = 0
    ours = evaluate(p, row.backend)
    for name, value in ours.items():
        assert torch.all(value == (1 if name == "importance_weight" else 0)), name


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_no_tokens_or_no_sequences(row: Row, shape: tuple[int, int]) -> None:
    p = problem(0, *shape)
    ours = evaluate(p, row.backend, upstream=1.0)
    expected = p["log_z"].square().sum() / max(shape[0], 1)
    assert ours["loss"].item() == pytest.approx(expected.item())
    assert ours["gradient of log_probs"].shape == shape
    assert all(value.isfinite().all() for value in ours.values())


@pytest.mark.parametrize("drift", [-1e4, -200.0, -90.0, 88.0, 90.0, 200.0, 1e4])
def test_no_log_ratio_overflows(row: Row, drift: float) -> None:
    p = problem(7, rows=3)
    p["old_log_probs"] = p["log_probs"].clone()
    p["old_log_probs"][0, 3] -= drift
    ours = check(p, row)
    residual = call({k: v[:1] for k, v in in_float64(p).items()}).metrics["residual"].item()
    weight = 10.0 if drift > 0 else math.exp(drift)
    assert ours["importance_weight"].item() == pytest.approx((weight + 2) / 3)
    assert ours["clip_fraction"].item() == pytest.approx(1 / 3 if drift > 0 else 0)
    expected = 0.7 * 2 * weight * residual / 3
    assert ours["gradient of log_z"][0].item() == pytest.approx(expected, rel=1e-5, abs=1e-30)


@pytest.mark.parametrize("drift", [90.0, 1e4])
def test_without_a_bound_the_loss_may_be_inf_but_not_nan(row: Row, drift: float) -> None:
    p = problem(8, rows=1)
    p["old_log_probs"] = p["log_probs"] - drift / p["loss_mask"].sum()
    free = {"max_importance_weight": math.inf}
    p["log_z"] += 1 - call(in_float64(p)).metrics["residual"].float()
    assert evaluate(p, row.backend, **free)["loss"] > 1e38
    # A residual of exactly 0, whose product with an infinite weight would be NaN.
    p |= {"ref_log_probs": p["log_probs"], "rewards": torch.zeros(1), "log_z": torch.zeros(1)}
    ours = evaluate(p, row.backend, **free)
    assert ours["loss"] == 0
    assert torch.all(ours["gradient of log_probs"] == 0)


# ---- traps --------------------------------------------------------------------------------------


def test_the_weight_is_of_the_sum_not_of_the_mean(row: Row) -> None:
    p = problem(9, rows=1)
    p["loss_mask"][:] = True
    p["old_log_probs"] = p["log_probs"] - 1 / T
    assert call(p, backend=row.backend).metrics["importance_weight"].item() == pytest.approx(math.e)


def test_clip_ratios_are_not_dead(row: Row) -> None:
    p = problem(10, rows=1)
    p["old_log_probs"] = p["log_probs"] - 1
    whole = call(p, backend=row.backend).metrics["importance_weight"]
    clipped = call(p, backend=row.backend, clip_ratio_low=0.2, clip_ratio_high=0.25)
    assert whole == 10
    assert clipped.metrics["importance_weight"] == 1.25
    assert clipped.metrics["clip_fraction"] == 1
    p["old_log_probs"] = p["log_probs"] + 1
    clipped = call(p, backend=row.backend, clip_ratio_low=0.25, clip_ratio_high=0.25)
    assert clipped.metrics["importance_weight"] == 0.75


def test_on_policy_every_weight_is_1(row: Row) -> None:
    p = problem(11)
    p["old_log_probs"] = p["log_probs"].clone()
    metrics = call(p, backend=row.backend).metrics
    assert metrics["importance_weight"] == 1
    assert metrics["ppo_kl"] == 0


@pytest.mark.parametrize("of", [int, float, torch.tensor])
def test_micro_batches_add_up(row: Row, of: Any) -> None:
    # Divided by the sequences of all, and not by a number of metrics over the mini-batch.
    p = problem(12, rows=6)
    whole = evaluate(p, row.backend)
    parts = [
        evaluate({k: v[at] for k, v in p.items()}, row.backend, num_sequences=of(6))
        for at in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    total = sum(part["loss"].double() for part in parts)
    torch.testing.assert_close(whole["loss"].double(), total, rtol=3e-7, atol=0)
    for name in ("gradient of log_probs", "gradient of log_z"):
        ours = torch.cat([part[name] for part in parts])
        assert torch.equal(bits(ours), bits(whole[name])), name  # whatever the batch


def test_the_metrics_are_what_they_say(row: Row) -> None:
    p = problem(13, drift=0.5)
    loss, metrics = call(p, backend=row.backend)
    assert (*metrics,) == METRICS
    for name, value in metrics.items():
        assert (value.shape, value.dtype, value.requires_grad) == ((), torch.float32, False), name
    mask, wide = p["loss_mask"], in_float64(p)
    tokens = {name: wide[f"{name}s"][mask].mean() for name in METRICS[:3]}
    tokens["ppo_kl"] = tokens["old_log_prob"] - tokens["log_prob"]
    tokens["ref_kl"] = tokens["ref_log_prob"] - tokens["log_prob"]
    drift = (wide["log_probs"] - wide["old_log_probs"]).where(mask, 0.0).sum(-1)
    reward = 15 * wide["rewards"].where(mask.any(-1), 0.0)
    shift = (wide["log_probs"] - wide["ref_log_probs"]).where(mask, 0.0).sum(-1)
    residual = wide["log_z"] + shift / mask.sum(-1).clamp(min=1) - reward
    sequences = {"log_z": wide["log_z"], "scaled_reward": reward, "residual": residual}
    sequences |= {"importance_weight": drift.exp().clamp(max=10)}
    sequences |= {"clip_fraction": (drift > math.log(10)).double()}
    expected = tokens | {name: value.mean() for name, value in sequences.items()}
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(value.item(), rel=1e-6, abs=1e-7), name
    truth = (sequences["importance_weight"] * residual**2).mean()
    assert loss.item() == pytest.approx(truth.item(), rel=1e-6)


# ---- layout -------------------------------------------------------------------------------------


def test_slices_are_read_where_they_lie(kernel_row: Row) -> None:
    p = problem(14, rows=4, columns=64)
    plain = evaluate(p, kernel_row.backend)
    wide = dict(p)
    for name, (left, right) in zip(
        ("log_probs", "ref_log_probs", "old_log_probs", "loss_mask"),
        ((0, 1), (1, 1), (3, 5), (2, 1)),
        strict=True,
    ):
        around = torch.full((4, left + 64 + right), math.nan)
        if name == "loss_mask":
            around = torch.ones(4, left + 64 + right, dtype=torch.bool)
        around[:, left : left + 64] = p[name]
        wide[name] = around[:, left : left + 64]
    with allocations() as sizes:
        ours = evaluate(wide, kernel_row.backend)
    for name, value in ours.items():
        assert torch.equal(bits(value), bits(plain[name])), name
    assert max(sizes) <= 4 * 4 * 64  # the gradient
    assert sum(size >= 4 * 64 for size in sizes) <= 1 + (kernel_row.backend != "cpu")


def test_any_strides_have_the_same_bits(kernel_row: Row) -> None:
    p = problem(15)
    p["rewards"], p["ref_log_probs"] = (
        p["rewards"][:1].expand(B),
        p["ref_log_probs"][:1].expand(B, T),
    )
    plain = evaluate({k: v.contiguous() for k, v in p.items()}, kernel_row.backend)
    turned = {k: v.T.contiguous().T if v.dim() == 2 else v for k, v in p.items()}
    turned["log_z"] = torch.stack([p["log_z"], p["log_z"]], 1)[:, 0]
    for odd in (p, turned):
        for name, value in evaluate(odd, kernel_row.backend).items():
            assert torch.equal(bits(value), bits(plain[name])), name


def test_threads_and_repeats_change_no_bit() -> None:
    p = problem(16, rows=7, columns=20_001, drift=0.01)  # enough for threads
    once = evaluate(p, "cpu")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for name, value in evaluate(p, "cpu").items():
                assert torch.equal(bits(value), bits(once[name])), name
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_floats_are_widened(row: Row, dtype: torch.dtype) -> None:
    p = {k: v.to(dtype) if v.is_floating_point() else v for k, v in problem(17).items()}
    ours = evaluate(p, row.backend)
    wide = evaluate(
        {k: v.float() if v.is_floating_point() else v for k, v in p.items()}, row.backend
    )
    assert torch.equal(ours["loss"], wide["loss"])
    assert ours["loss"].dtype == torch.float32
    assert torch.equal(ours["gradient of log_probs"], wide["gradient of log_probs"].to(dtype))


def test_a_mask_of_numbers(row: Row) -> None:
    p = problem(18)
    plain = evaluate(p, row.backend)
    numbers = evaluate(p | {"loss_mask": p["loss_mask"].long() * 3}, row.backend)
    assert torch.equal(numbers["loss"], plain["loss"])


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"log_probs": torch.zeros(3)}, ValueError, r"log_probs: expected shape \[B, T\], got \(3"),
        ({"log_probs": [0.0]}, TypeError, "log_probs: expected a torch.Tensor, got list"),
        ({"log_probs": torch.ones(B, T).int()}, TypeError, "log_probs: expected float32 or"),
        ({"ref_log_probs": torch.zeros(B, T + 1)}, ValueError, "ref_log_probs: expected shape"),
        ({"old_log_probs": torch.zeros(B)}, ValueError, "old_log_probs: expected shape"),
        ({"rewards": torch.zeros(B, T)}, ValueError, r"rewards: expected shape \(5,\), got"),
        ({"log_z": torch.zeros(B, 1)}, ValueError, r"log_z: expected shape \(5,\), got \(5, 1\)"),
        ({"loss_mask": torch.ones(B)}, ValueError, "loss_mask: expected shape"),
        ({"loss_mask": None}, TypeError, "loss_mask: expected a torch.Tensor, got NoneType"),
        ({"log_z": torch.zeros(B, device="meta")}, ValueError, "log_z: expected a tensor on cpu"),
        ({"reward_scale": math.nan}, ValueError, "reward_scale: expected a finite number"),
        ({"max_importance_weight": 0.0}, ValueError, "max_importance_weight: .* above 0, got 0"),
        ({"max_importance_weight": None}, TypeError, "max_importance_weight: expected a number"),
        ({"clip_ratio_low": 0.2}, ValueError, "clip_ratio_high: .* where there is clip_ratio_low"),
        ({"clip_ratio_high": 0.2}, ValueError, "clip_ratio_low: .* where there is clip_ratio_high"),
        (
            {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "max_importance_weight": 5.0},
            ValueError,
            "max_importance_weight: expected its default where clip_ratio_low.*got 5.0",
        ),
        ({"clip_ratio_low": -0.2, "clip_ratio_high": 0.2}, ValueError, "clip_ratio_low: .*-0.2"),
        ({"clip_ratio_low": 0.2, "clip_ratio_high": math.inf}, ValueError, "clip_ratio_high: .*"),
        ({"num_sequences": 0}, ValueError, "num_sequences: expected a finite number above 0"),
        ({"num_sequences": torch.tensor(-1.0)}, ValueError, "num_sequences: .* above 0, got -1"),
        ({"num_sequences": torch.ones(1)}, ValueError, r"num_sequences: .* 0-d .*\(1,\)"),
        ({"backend": "fast"}, ValueError, "backend: expected one of .* for flow_balance"),
    ],
    ids=str,
)  # fmt: skip
def test_refusals(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    p: dict[str, Any] = problem() | {k: v for k, v in changes.items() if k in ARGUMENTS}
    options = {k: v for k, v in changes.items() if k not in ARGUMENTS}
    with pytest.raises(error, match=message):
        flow_balance_loss(*(p[name] for name in ARGUMENTS), **options)


def test_a_kernel_refuses_float64(kernel_row: Row) -> None:
    with pytest.raises(BackendError, match=f"{kernel_row.backend}: serves float32, got float64"):
        call(in_float64(problem()), backend=kernel_row.backend)
    assert call(in_float64(problem())).loss.dtype == torch.float64  # on the torch row
