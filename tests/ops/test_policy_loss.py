"""The contract of policy_loss: numbers, masks, and every documented error."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from logpi import BackendError, policy_loss
from logpi.core.masked import AGGREGATIONS
from logpi.objectives import (
    GMPO,
    GSPO,
    KL,
    LUFFY,
    SFT,
    ClipCov,
    KLCov,
    Objective,
    PPOClip,
    RolloutImportance,
)
from logpi.testing import bits, nan_empty
from loss_problems import (
    EVERY,
    OF_A_SEQUENCE,
    WITH_KERNELS,
    B,
    Problem,
    T,
    check,
    evaluate,
    in_float64,
    problem,
    problems,
    stacked,
)
from rows import ROWS, Row, serve

_ROWS = [row for row in ROWS if row.backend != "cuda"]  # which this op has none of


@pytest.fixture(params=[row for row in _ROWS if row.isa is None], ids=str)
def row(request: pytest.FixtureRequest) -> Iterator[Row]:
    yield from serve(request.param)


@pytest.fixture(params=[row for row in _ROWS if row.backend != "torch"], ids=str)
def kernel_row(request: pytest.FixtureRequest) -> Iterator[Row]:
    yield from serve(request.param)


def name_of(value: Any) -> str | None:
    return str(value) if isinstance(value, Objective) else None


ALL_PARTS: Problem = {
    "kl": KL(0.1),
    "entropy_coef": 0.01,
    "importance": RolloutImportance(max=1.5),
}

# ---- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", WITH_KERNELS, ids=name_of)
def test_within_budget(kernel_row: Row, objective: Objective) -> None:
    check(problems(), kernel_row, objective=objective)
    check(problems(), kernel_row, objective=objective, **ALL_PARTS)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_aggregations(kernel_row: Row, aggregation: str) -> None:
    check(problems(), kernel_row, aggregation=aggregation, kl=KL(0.1), entropy_coef=0.02)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "abs", "k1+", "k3+", "abs+"])
def test_kl_estimators(kernel_row: Row, estimator: str) -> None:
    check(problems(), kernel_row, kl=KL(0.5, estimator))


@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_importance(kernel_row: Row, level: str, mode: str) -> None:
    importance = RolloutImportance(level, mode, max=1.5, min=0.6)
    check(problems(), kernel_row, importance=importance, kl=KL(0.1))


@pytest.mark.parametrize("shape", [(1, 1), (40, 1), (3, 3000), (1, 9001)], ids=str)
def test_shapes(kernel_row: Row, shape: tuple[int, int]) -> None:
    """Rows shorter than a vector, and chunks that end inside a row."""
    if kernel_row.tiny and shape[0] * shape[1] > 5000:
        shape = (1, 2500)
    check(problems(*shape), kernel_row, **ALL_PARTS)


@pytest.mark.parametrize("objective", WITH_KERNELS, ids=name_of)
def test_ratios_far_outside_the_clip(kernel_row: Row, objective: Objective) -> None:
    """30 nats: past the clamp of the log-ratio, where a loss may be 1e8 and its gradient 0."""
    far = problems()
    for p in far:
        p["old_log_probs"] = p["old_log_probs"] + torch.tensor([30.0, -30.0, 0.0, 40, 1])[:, None]
        p["ref_log_probs"] = p["ref_log_probs"] + torch.tensor([0.0, -30.0, 30.0, 3, 1])[:, None]
    ours = check(far, kernel_row, objective=objective, kl=KL(0.1))
    assert ours["approx_kl_k3"].isfinite().all()


def test_near_the_old_policy(kernel_row: Row) -> None:
    """The digits of k3 are those of x^2 / 2, of which e^x - 1 - x has none left."""
    near = problems()
    for p in near:
        p["old_log_probs"] = p["log_probs"] + 1e-4 * torch.randn(B, T)
        p["ref_log_probs"] = p["log_probs"] + 1e-5 * torch.randn(B, T)
    ours = check(near, kernel_row, kl=KL(0.1))
    assert (ours["approx_kl_k3"] > 1e-9).all()


def test_one_advantage_a_sequence(row: Row) -> None:
    p = problem()
    p["advantages"] = torch.tensor([1.0, -0.5, 0.0, 2.0, -1.0])
    spread = p | {"advantages": p["advantages"][:, None].expand(B, T)}
    ours, expected = evaluate(p, row.backend), evaluate(spread, row.backend)
    assert all(torch.equal(bits(ours[k]), bits(expected[k])) for k in expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_widened_at_the_door(row: Row, dtype: torch.dtype) -> None:
    p = problem()
    narrow = {k: v.to(dtype) if v.is_floating_point() else v for k, v in p.items()}
    wide = {k: v.float() if v.is_floating_point() else v for k, v in narrow.items()}
    ours, expected = (evaluate(q, row.backend, **ALL_PARTS) for q in (narrow, wide))
    assert ours["loss"].dtype == torch.float32
    assert torch.equal(ours["loss"], expected["loss"])
    for name in ("gradient of log_probs", "gradient of entropy"):
        assert torch.equal(ours[name], expected[name].to(dtype)), name


def test_strides(row: Row) -> None:
    p = problem()
    tensors = {k: v for k, v in p.items() if k != "advantages"}
    strided = {k: torch.stack((v, v), -1)[..., 0] for k, v in tensors.items()}
    shifted = {k: torch.cat((v, v[:, :1]), 1)[:, :-1] for k, v in tensors.items()}
    expected = evaluate(p, row.backend, **ALL_PARTS)
    for other in (strided, shifted):
        ours = evaluate(p | other, row.backend, **ALL_PARTS)
        assert all(torch.equal(bits(ours[k]), bits(expected[k])) for k in expected)


@pytest.mark.parametrize("objective", [PPOClip(), *OF_A_SEQUENCE], ids=name_of)
def test_micro_batches_add_up(row: Row, objective: Objective) -> None:
    """With counts of the whole, on device, and a horizon where rows are cut to their length."""
    if objective in OF_A_SEQUENCE and row.backend != "torch":
        pytest.skip(f"{row}: has no kernel for {objective}")
    p = problem()
    cases: tuple[Problem, ...] = (
        {"num_tokens": p["loss_mask"].sum()},
        {"aggregation": "seq-mean-token-mean", "num_sequences": torch.tensor(5.0)},
        {"aggregation": "seq-mean-token-sum-norm", "num_sequences": 5, "horizon": 50},
    )
    for counts in cases:
        options = counts | {"objective": objective}
        whole = evaluate(p, row.backend, **options)
        parts = [
            evaluate({k: v[at : at + 1] for k, v in p.items()}, row.backend, **options)
            for at in range(B)
        ]
        loss = sum(part["loss"] for part in parts)
        assert torch.allclose(loss, whole["loss"], rtol=1e-5, atol=1e-7)
        grads = torch.cat([part["gradient of log_probs"] for part in parts])
        assert torch.allclose(grads, whole["gradient of log_probs"], rtol=1e-6, atol=1e-9)


def test_the_upstream_gradient_scales(row: Row) -> None:
    p = problem()
    ours, one = (evaluate(p, row.backend, up, **ALL_PARTS) for up in (-2.5, 1.0))
    for name in ("gradient of log_probs", "gradient of entropy"):
        assert torch.allclose(ours[name], -2.5 * one[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("threads", [1, 2])
def test_bits_know_nothing_of_threads(threads: int) -> None:
    p = problem(0, 7, 9001)
    expected = evaluate(p, "cpu", **ALL_PARTS)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = evaluate(p, "cpu", **ALL_PARTS)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(bits(ours[k]), bits(expected[k])) for k in expected)


# ---- masks and zeros ----------------------------------------------------------------------------


@pytest.mark.parametrize("objective", EVERY, ids=name_of)
def test_masked_tokens_leak_nothing(row: Row, objective: Objective) -> None:
    if objective in OF_A_SEQUENCE and row.backend != "torch":
        pytest.skip(f"{row}: has no kernel for {objective}")
    p, options = problem(), {"objective": objective, **ALL_PARTS}
    clean = evaluate(p, row.backend, **options)
    for poison in (math.nan, math.inf, -math.inf):
        floats = {k: v for k, v in p.items() if v.is_floating_point()}
        dirty = {k: v.masked_fill(~p["loss_mask"], poison) for k, v in floats.items()}
        ours = evaluate(p | dirty, row.backend, **options)
        assert all(torch.equal(bits(ours[k]), bits(clean[k])) for k in clean)
        for name in ("gradient of log_probs", "gradient of entropy"):
            assert not ours[name][~p["loss_mask"]].any()


@pytest.mark.parametrize("objective", EVERY, ids=name_of)
def test_nothing_at_all(row: Row, objective: Objective) -> None:
    if objective in OF_A_SEQUENCE and row.backend != "torch":
        pytest.skip(f"{row}: has no kernel for {objective}")
    p = problem()
    p["loss_mask"] = torch.zeros(B, T, dtype=torch.bool)
    with nan_empty():
        ours = evaluate(p, row.backend, objective=objective, **ALL_PARTS)
    assert not any(value.any() for value in ours.values())


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)], ids=str)
def test_an_empty_batch(row: Row, shape: tuple[int, int]) -> None:
    ours = evaluate(problem(0, *shape), row.backend, **ALL_PARTS)
    assert not any(value.any() for value in ours.values())


def test_a_nan_inside_the_mask_is_told(row: Row) -> None:
    p = problem()
    p["loss_mask"][0, 0] = True
    p["log_probs"][0, 0] = math.nan
    ours = evaluate(p, row.backend)
    assert ours["loss"].isnan()
    assert ours["ratio"].isnan()
    assert ours["gradient of log_probs"].isnan().sum() <= 1


def test_a_mask_of_numbers(row: Row) -> None:
    p = problem()
    ours = evaluate(p | {"loss_mask": p["loss_mask"].float() * 3}, row.backend)
    assert torch.equal(ours["loss"], evaluate(p, row.backend)["loss"])


def test_without_grad_mode_the_same_bits(row: Row) -> None:
    p = problem()
    expected = evaluate(p, row.backend)
    names = "log_probs", "old_log_probs", "advantages", "loss_mask"
    out = policy_loss(*(p[name] for name in names), backend=row.backend)
    assert not out.loss.requires_grad
    assert torch.equal(bits(out.loss), bits(expected["loss"]))


def test_the_order_of_the_metrics_is_the_definition_s(kernel_row: Row) -> None:
    for objective in WITH_KERNELS:
        ours, expected = (
            list(evaluate(problem(), backend, objective=objective, **ALL_PARTS))
            for backend in (kernel_row.backend, "torch")
        )
        assert ours == expected, objective


# ---- errors -------------------------------------------------------------------------------------


def good() -> Problem:
    p = problem()
    return {k: p[k] for k in ("log_probs", "old_log_probs", "advantages", "loss_mask")}


ONES = torch.ones(B, T)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"objective": "ppo"}, TypeError, r"objective: expected one of logpi.objectives, got str"),
        ({"objective": PPOClip}, TypeError, r"objective: expected one of logpi.objectives, got"),
        ({"log_probs": ONES[0]}, ValueError, r"log_probs: expected shape \[B, T\], got \(43,\)"),
        ({"log_probs": ONES.long()}, TypeError, r"log_probs: expected float32 or .*, got int64"),
        ({"log_probs": [1.0]}, TypeError, r"log_probs: expected a torch.Tensor, got list"),
        ({"old_log_probs": ONES[:2]}, ValueError, r"old_log_probs: expected shape \(5, 43\), got"),
        ({"advantages": ONES[:, :1]}, ValueError, r"advantages: expected shape \(5, 43\), got \(5"),
        ({"advantages": ONES[0]}, ValueError, r"advantages: expected shape \(5,\), got \(43,\)"),
        ({"advantages": 1.0}, TypeError, r"advantages: expected a torch.Tensor, got float"),
        ({"loss_mask": ONES[:, 0]}, ValueError, r"loss_mask: expected shape \(5, 43\), got \(5,\)"),
        ({"aggregation": "mean"}, ValueError, r"aggregation: expected one of 'token-mean'"),
        ({"num_sequences": 3}, ValueError, r"num_sequences: expected None, as 'token-mean'"),
        ({"horizon": 3}, ValueError, r"horizon: expected None, as 'token-mean' does not use it"),
        ({"kl": KL(0.1)}, ValueError, r"ref_log_probs: expected one where there is kl, got None"),
        (
            {"ref_log_probs": ONES},
            ValueError,
            r"kl: expected one where there is ref_log_probs, got None \(KL\(0.0\) reports only\)",
        ),
        ({"kl": 0.1, "ref_log_probs": ONES}, TypeError, r"kl: expected a KL of logpi.objectives"),
        ({"entropy_coef": 0.1}, ValueError, r"entropy: expected one where there is entropy_coef"),
        ({"entropy_coef": math.nan}, ValueError, r"entropy_coef: expected a finite number"),
        ({"entropy": ONES[0]}, ValueError, r"entropy: expected shape \(5, 43\)"),
        (
            {"importance": RolloutImportance()},
            ValueError,
            r"rollout_log_probs: expected one where there is importance, got None",
        ),
        (
            {"rollout_log_probs": ONES},
            ValueError,
            r"importance: expected one where there is rollout_log_probs, got None",
        ),
        (
            {"importance": 2.0, "rollout_log_probs": ONES},
            TypeError,
            r"importance: expected a RolloutImportance, got float",
        ),
        (
            {"objective": ClipCov()},
            ValueError,
            r"selection: expected what logpi.clip_cov_mask returns, for ClipCov, got None",
        ),
        (
            {"objective": KLCov()},
            ValueError,
            r"selection: expected what logpi.kl_cov_mask returns, for KLCov, got None",
        ),
        (
            {"selection": ONES.bool()},
            ValueError,
            r"selection: expected None, as PPOClip does not use it",
        ),
        (
            {"objective": KLCov(), "selection": ONES},
            TypeError,
            r"selection: expected bool, got float32",
        ),
        ({"backend": "vulkan"}, ValueError, r"backend: expected one of .* for policy_loss, got"),
        (
            {"objective": GSPO(), "backend": "cpu"},
            BackendError,
            r"cpu: has no kernel for GSPO, of which a token's gradient depends on its whole seq",
        ),
        ({"objective": GMPO(), "backend": "cpu"}, BackendError, r"cpu: has no kernel for GMPO"),
    ],
)
def test_bad_arguments(changes: Problem, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        policy_loss(**good() | changes)


def test_an_objective_of_ones_own_is_served_by_the_definition() -> None:
    class Own(PPOClip):
        pass

    assert policy_loss(**good(), objective=Own()).loss == evaluate(problem(), "torch")["loss"]
    with pytest.raises(BackendError, match="cpu: has no kernel for Own"):
        policy_loss(**good(), objective=Own(), backend="cpu")


def test_float64_is_served_by_the_definition() -> None:
    p = in_float64(good())
    assert policy_loss(**p).loss.dtype == torch.float64
    with pytest.raises(BackendError, match=r"cpu: serves float32, bfloat16 and float16"):
        policy_loss(**p, backend="cpu")


def test_the_table_tells_one_objective_from_another() -> None:
    """Were two kernels exchanged, a budget of the first would not say so."""
    losses = stacked(evaluate(problem(), "torch", objective=o) for o in (SFT(), LUFFY(), PPOClip()))
    assert len({value.item() for value in losses["loss"]}) == 3
