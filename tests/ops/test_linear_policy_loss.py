"""The contract of linear_policy_loss: numbers, masks and zeros, and every documented error."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from logpi import BackendError, KeepSet, linear_log_probs, linear_policy_loss, policy_loss
from logpi.core.masked import AGGREGATIONS
from logpi.objectives import GSPO, KL, ClipCov, TokenObjective
from logpi.testing import DTYPES, bits, nan_empty
from loss_problems import OF_A_TOKEN
from policy_problems import (
    LEAVES,
    OBJECTIVES,
    ROW_BYTES,
    B,
    D,
    Problem,
    T,
    V,
    check,
    evaluate,
    in_float64,
    old_log_probs,
    problem,
    problems,
    room_for,
)

if TYPE_CHECKING:
    from rows import Row

# ---- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalties", [False, True], ids=["bare", "penalties"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_within_budget(kernel_row: Row, objective: TokenObjective, penalties: bool) -> None:
    """Weights are not the kernels' business: a slow row need not run them all."""
    options = {"kl": KL(0.1), "entropy_coef": 0.01} if penalties else {}
    for aggregation in AGGREGATIONS[: 1 if kernel_row.tiny else None]:
        options |= {"objective": objective, "aggregation": aggregation}
        check(problems(), kernel_row, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(kernel_row: Row, dtype: torch.dtype) -> None:
    ours = check(problems(dtype), kernel_row, kl=KL(0.1), entropy_coef=0.1)
    assert ours["loss"].dtype == ours["entropy"].dtype == torch.float32
    assert {ours[f"gradient of {name}"].dtype for name in LEAVES} == {dtype}


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "abs"])
def test_kl_estimators(kernel_row: Row, estimator: str) -> None:
    check(problems(), kernel_row, kl=KL(0.5, estimator), entropy_coef=-0.02)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_ratios_far_outside_the_clip(kernel_row: Row, objective: TokenObjective) -> None:
    """30 nats: past the clamp of the log-ratio, where a loss may be 1e8 and its gradient 0."""
    far = problems()
    for p in far:
        p["old_log_probs"] = p["old_log_probs"] + torch.tensor([30.0, -30.0, 0.0])[:, None]
    ours = check(far, kernel_row, objective=objective)
    assert ours["approx_kl_k3"].isfinite().all()


@pytest.mark.parametrize("scale", [6.0, 1e-3], ids=["peaked", "flat"])
def test_peaked_and_flat_rows(kernel_row: Row, scale: float) -> None:
    check(problems(scale=scale), kernel_row, entropy_coef=0.1)


@pytest.mark.parametrize("chunk", [1, 7, 16, 48, None])
def test_chunks(kernel_row: Row, chunk: int | None) -> None:
    """The error does not grow with the number of chunks: sums over them are wide."""
    room = room_for(chunk)
    check(problems(), kernel_row, kl=KL(0.1), entropy_coef=0.01, workspace_bytes=room)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_chunks_of_half_precision(kernel_row: Row, dtype: torch.dtype) -> None:
    """The weight's gradient adds up in float32: 39 chunks cost it no more than one."""
    check(
        problems(dtype), kernel_row, workspace_bytes=room_for(1, ROW_BYTES // 2), entropy_coef=0.1
    )


OPTIONS: dict[str, Problem] = {
    "temperature": {"temperature": 0.6},
    "temperatures": {"temperature": torch.linspace(0.5, 2.0, B * T).view(B, T)},
    "softcap": {"softcap": 5.0},
    "logit_scale": {"logit_scale": 0.3},
    "padding": {"vocab_size": V - 63},
    "slice": {"support": slice(101, 901)},
    "num_tokens": {"num_tokens": 1234},
    "float32_head": {"logits_dtype": torch.float32},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("option", OPTIONS)
def test_options(kernel_row: Row, option: str, dtype: torch.dtype) -> None:
    cases = problems(dtype)
    for p in cases:
        p["token_ids"] = p["token_ids"].clamp(101, 900)
        p["old_log_probs"] = old_log_probs(p, OPTIONS[option])
    for room in (room_for(24),) if kernel_row.tiny else (None, room_for(24)):
        options = OPTIONS[option] | {"workspace_bytes": room, "entropy_coef": 0.05}
        check(cases, kernel_row, **options)


def test_outside_the_support_the_gradient_is_zero(row: Row) -> None:
    p = problem()
    p["token_ids"] = p["token_ids"].clamp(101, 900)
    for room in (None, room_for(16)):
        options = {"support": slice(101, 901), "workspace_bytes": room}
        grad = evaluate(p, row.backend, **options)["gradient of weight"]
        assert grad[101:901].any(-1).all()
        assert not grad[:101].any()
        assert not grad[901:].any()


def test_one_advantage_a_sequence(row: Row) -> None:
    p = problem()
    p["advantages"] = torch.tensor([1.0, -0.5, 0.0])
    spread = p | {"advantages": p["advantages"][:, None].expand(B, T)}
    ours, expected = evaluate(p, row.backend), evaluate(spread, row.backend)
    assert all(torch.equal(bits(ours[k]), bits(expected[k])) for k in expected)


def test_equals_log_probs_and_a_loss_behind_them(row: Row) -> None:
    """The contract, in the words of a trainer: linear_log_probs, the formulas, autograd."""
    p = problem()
    ours = evaluate(p, row.backend, kl=KL(0.1), entropy_coef=0.01)
    leaves = {k: p[k].detach().clone().requires_grad_() for k in LEAVES}
    out = linear_log_probs(
        leaves["hidden_states"], leaves["weight"], p["token_ids"], bias=leaves["bias"],
        loss_mask=p["loss_mask"], return_entropy=True, backend=row.backend,
    )  # fmt: skip
    assert out.entropy is not None
    ratio = (out.log_probs - p["old_log_probs"]).exp()
    x = p["ref_log_probs"] - out.log_probs
    losses = torch.maximum(-p["advantages"] * ratio, -p["advantages"] * ratio.clamp(0.8, 1.2))
    terms = losses + 0.1 * (x.exp() - x - 1) - 0.01 * out.entropy
    loss = terms[p["loss_mask"]].mean()
    loss.backward()
    assert float(ours["loss"]) == pytest.approx(loss.item(), rel=1e-5)
    for name, leaf in leaves.items():
        error = (ours[f"gradient of {name}"] - leaf.grad).abs().max()
        assert error < 1e-5 * leaf.grad.abs().max(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_first_ratio_is_exactly_one(kernel_row: Row, dtype: torch.dtype) -> None:
    """The log-probs have the bits of linear_log_probs, whatever the batch."""
    p = problem(dtype=dtype)
    head = p["hidden_states"], p["weight"], p["token_ids"]
    for chunk in (None, 16):
        room = room_for(chunk)
        options = {"backend": kernel_row.backend, "workspace_bytes": room}
        p["old_log_probs"] = linear_log_probs(*head, bias=p["bias"], **options).log_probs
        metrics = evaluate(p, **options)
        assert metrics["ratio"] == 1
        assert metrics["approx_kl_k1"] == metrics["approx_kl_k3"] == 0


def test_micro_batches_add_up(row: Row) -> None:
    p = problem()
    whole = evaluate(p, row.backend)
    count = p["loss_mask"].sum()  # a 0-d tensor, as an all-reduce leaves it
    total: dict[str, Tensor] = {}
    for at in range(B):
        cut = {k: v[at : at + 1] for k, v in p.items() if k not in ("weight", "bias")}
        part = evaluate(p | cut, row.backend, num_tokens=count)
        total = {k: total[k] + v if total else v for k, v in part.items()}
    for name in ("loss", "policy_loss", "gradient of weight", "gradient of bias"):
        assert torch.allclose(total[name], whole[name], rtol=1e-5, atol=1e-7), name


@pytest.mark.parametrize("objective", OF_A_TOKEN, ids=str)
def test_every_token_level_objective(objective: TokenObjective) -> None:
    """The same as linear_log_probs and policy_loss, tokens of advantage 0 included."""
    p = problem()
    p["advantages"][0] = 0.0
    options = {"objective": objective, "kl": KL(0.0)}
    ours = evaluate(p, "cpu", **options)
    leaf = p["hidden_states"].clone().requires_grad_()
    log_probs = linear_log_probs(leaf, p["weight"], p["token_ids"], bias=p["bias"]).log_probs
    known = p["old_log_probs"], p["advantages"], p["loss_mask"]
    loss, metrics = policy_loss(log_probs, *known, ref_log_probs=p["ref_log_probs"], **options)
    loss.backward()
    assert torch.allclose(ours["loss"], loss.detach(), rtol=2e-5, atol=1e-7)
    error = (ours["gradient of hidden_states"] - leaf.grad).abs().max()
    assert error <= 1e-5 * leaf.grad.abs().max()
    for name, value in metrics.items():
        assert torch.allclose(ours[name], value, rtol=1e-4, atol=1e-7), name


# ---- masks and zeros ----------------------------------------------------------------------------


def test_masked_rows_leak_nothing(row: Row) -> None:
    p = problem()
    clean = evaluate(p, row.backend, kl=KL(0.1), entropy_coef=0.01)
    dirty = dict(p)
    for name in ("hidden_states", "old_log_probs", "ref_log_probs", "advantages"):
        mask = p["loss_mask"] if p[name].dim() == 2 else p["loss_mask"][..., None]
        dirty[name] = p[name].masked_fill(~mask, math.nan)
    dirty["token_ids"] = p["token_ids"].masked_fill(~p["loss_mask"], -7)
    ours = evaluate(dirty, row.backend, kl=KL(0.1), entropy_coef=0.01)
    assert all(torch.equal(bits(ours[k]), bits(clean[k])) for k in clean)
    assert not ours["gradient of hidden_states"][~p["loss_mask"]].any()


def test_nothing_at_all(row: Row) -> None:
    p = problem()
    p["loss_mask"] = torch.zeros(B, T, dtype=torch.bool)
    with nan_empty():
        ours = evaluate(p, row.backend, kl=KL(0.1), entropy_coef=0.01)
    assert not any(value.any() for value in ours.values())


def test_an_empty_batch(row: Row) -> None:
    p = {k: v if k in ("weight", "bias") else v[:0] for k, v in problem().items()}
    with nan_empty():
        ours = evaluate(p, row.backend)
    assert not any(value.any() for value in ours.values())


@pytest.mark.parametrize("chunk", [None, 16])
def test_rows_of_advantage_zero(row: Row, chunk: int | None) -> None:
    """They count in the metrics and have exactly no gradient."""
    p = problem()
    p["advantages"][1] = 0.0
    room = room_for(chunk)
    ours = evaluate(p, row.backend, workspace_bytes=room)
    hidden = ours["gradient of hidden_states"]
    assert not hidden[p["advantages"] == 0].any()
    assert hidden[(p["advantages"] != 0) & p["loss_mask"]].any()
    with_bonus = evaluate(p, row.backend, entropy_coef=1e-3)
    assert with_bonus["gradient of hidden_states"][1].any()  # an entropy bonus reaches all rows
    for name in ("entropy", "ratio", "approx_kl_k3"):
        assert float(ours[name]) == pytest.approx(float(with_bonus[name]), rel=1e-6)


def test_all_advantages_zero(row: Row) -> None:
    p = problem()
    p["advantages"] = torch.zeros(B, T)
    with nan_empty():
        ours = evaluate(p, row.backend)
    assert not any(ours[f"gradient of {name}"].any() for name in LEAVES)
    assert ours["entropy"] > 0


# ---- errors -------------------------------------------------------------------------------------


def good() -> Problem:
    p = problem()
    p.pop("ref_log_probs")
    return p


SEQUENCE = r"objective: expected a token-level one, got GSPO, whose gradient at a token depends on"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"objective": GSPO()},
            ValueError,
            SEQUENCE + r".*linear_log_probs\(.., retain_bytes=..\)",
        ),
        (
            {"objective": ClipCov()},
            ValueError,
            r"got ClipCov, whose gradient at a token depends on which tokens of the whole batch",
        ),
        ({"objective": "ppo"}, TypeError, r"objective: expected one of logpi.objectives, got str"),
        (
            {"support": KeepSet.from_lists([[1]] * (B * T))},
            ValueError,
            r"support: expected None or a slice, got a KeepSet.*linear_log_probs",
        ),
        ({"support": slice(3, 3)}, ValueError, r"support: expected slice\(a, b\)"),
        (
            {"hidden_states": torch.ones(B * T, D)},
            ValueError,
            r"hidden_states: expected shape \[B, T, D\], got \(39, 24\)",
        ),
        ({"hidden_states": [1.0]}, TypeError, r"hidden_states: expected a torch.Tensor, got list"),
        ({"weight": torch.ones(V, 3)}, ValueError, r"weight: expected shape \(V, 24\)"),
        ({"weight": torch.ones(V, D).half()}, TypeError, r"weight: expected torch.float32"),
        (
            {"token_ids": torch.zeros(B, T, 2, dtype=torch.int64)},
            ValueError,
            r"token_ids: expected shape \(3, 13\), got \(3, 13, 2\)",
        ),
        ({"token_ids": torch.ones(B, T)}, TypeError, r"token_ids: expected int64 or int32"),
        (
            {"token_ids": torch.full((B, T), V)},
            ValueError,
            r"token_ids: expected ids in \[0, 1021\), got 1021 in row",
        ),
        ({"old_log_probs": torch.ones(T)}, ValueError, r"old_log_probs: expected shape \(3, 13\)"),
        ({"old_log_probs": torch.ones(B, T).long()}, TypeError, r"old_log_probs: expected float32"),
        (
            {"advantages": torch.ones(T)},
            ValueError,
            r"advantages: expected shape \(3,\), got \(13,\)",
        ),
        ({"advantages": 1.0}, TypeError, r"advantages: expected a torch.Tensor, got float"),
        (
            {"loss_mask": torch.ones(B)},
            ValueError,
            r"loss_mask: expected shape \(3, 13\), got \(3,\)",
        ),
        ({"aggregation": "mean"}, ValueError, r"aggregation: expected one of 'token-mean'"),
        ({"num_sequences": 3}, ValueError, r"num_sequences: expected None, as 'token-mean'"),
        ({"kl": KL(0.1)}, ValueError, r"ref_log_probs: expected one where there is kl, got None"),
        (
            {"ref_log_probs": torch.zeros(B, T)},
            ValueError,
            r"kl: expected one where there is ref_log_probs, got None \(KL\(0.0\) reports only\)",
        ),
        (
            {"kl": 0.1, "ref_log_probs": torch.zeros(B, T)},
            TypeError,
            r"kl: expected a KL of logpi.objectives, got float",
        ),
        (
            {"entropy_coef": math.nan},
            ValueError,
            r"entropy_coef: expected a finite number, got nan",
        ),
        (
            {"entropy_coef": torch.ones(())},
            TypeError,
            r"entropy_coef: expected a number, got Tensor",
        ),
        ({"temperature": 0.0}, ValueError, r"temperature: expected a finite number above 0"),
        ({"backend": "vulkan"}, ValueError, r"backend: expected one of .* for linear_policy_loss"),
        (
            {"backend": "torch", "weight_grad": torch.zeros(V, D)},
            BackendError,
            r"torch: leaves gradients to autograd and takes no weight_grad",
        ),
    ],
)
def test_bad_arguments(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        linear_policy_loss(**good() | changes)


def test_a_workspace_that_holds_no_row(kernel_row: Row) -> None:
    p = good()
    p["weight"].requires_grad_()
    least = room_for(1)
    with pytest.raises(ValueError, match=f"workspace_bytes: expected at least {least}, got 4200"):
        linear_policy_loss(**p, workspace_bytes=4200, backend=kernel_row.backend)
    linear_policy_loss(**p, workspace_bytes=least, backend=kernel_row.backend)


def test_operands_of_two_dtypes(kernel_row: Row) -> None:
    """A float32 head behind a model in bfloat16."""
    mixed = problems()
    for p in mixed:
        p["hidden_states"] = p["hidden_states"].bfloat16()
    for rows in (None, 16):
        options = {"logits_dtype": torch.float32, "workspace_bytes": room_for(rows)}
        ours = check(mixed, kernel_row, entropy_coef=0.1, **options)
        assert ours["gradient of hidden_states"].dtype == torch.bfloat16
        assert ours["gradient of weight"].dtype == torch.float32


def test_float64_is_served_by_the_definition() -> None:
    p = in_float64(good())
    assert linear_policy_loss(**p).loss.dtype == torch.float64
    with pytest.raises(BackendError, match=r"cpu: serves float32, bfloat16 and float16"):
        linear_policy_loss(**p, backend="cpu")


def test_a_sharded_weight_is_told_where_to_go() -> None:
    class Sharded(Tensor):
        placements = "(Shard(dim=0),)"
        full_tensor = None

    p = good()
    p["weight"] = p["weight"].as_subclass(Sharded)
    with pytest.raises(TypeError, match=r"weight: .*process_group= .*which linear_log_probs takes"):
        linear_policy_loss(**p)
