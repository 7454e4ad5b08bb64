"""HPT: who is taught, who is reinforced, and a balance that packing does not move."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from logpi import policy_loss
from logpi.objectives import HPT, LUFFY, SFT, KLCov, PPOClip, SoftHPT, Surrogate

float64 = torch.float64
# Three prompts, two rollouts and a demonstration each, of which 0, 1 and 2 were solved.
SOLVED = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
DEMONSTRATION = torch.tensor([False, False, True] * 3)
B, T = 9, 5


def batch() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    log_probs = -torch.rand(B, T, generator=g, dtype=float64) - 0.1
    return {
        "log_probs": log_probs,
        "old_log_probs": log_probs + 0.3 * torch.randn(B, T, generator=g, dtype=float64),
        "advantages": torch.randn(B, generator=g, dtype=float64),
        "loss_mask": torch.rand(B, T, generator=g) < 0.8,
    }


GROUPS = {"num_solved": SOLVED, "is_demonstration": DEMONSTRATION}


@pytest.mark.parametrize(
    ("hpt", "rl", "off_policy", "sft"),
    [
        (HPT(), [3, 4, 6, 7], [], [2]),
        (HPT(gate=1, sft_coef=0.3), [6, 7], [], [2, 5]),
        (HPT(gate=0, off_policy_gate=1), [6, 7], [5], [2]),
        (HPT(gate=2), [], [], [2, 5, 8]),
    ],
    ids=str,
)
def test_the_switch(hpt: HPT, rl: list[int], off_policy: list[int], sft: list[int]) -> None:
    rows = hpt.select(SOLVED, DEMONSTRATION)
    assert [row.nonzero().flatten().tolist() for row in rows] == [rl, off_policy, sft]
    assert set(rows.sft.unique().tolist()) <= {0.0, hpt.sft_coef}
    assert set(rows.rl.unique().tolist()) <= {0.0, 1.0}


def test_soft_tables() -> None:
    rows = SoftHPT((0.1, 0.5, 1.0), (1.0, 0.5, 0.0)).select(SOLVED, DEMONSTRATION)
    assert rows.rl.tolist() == [0.1, 0.1, 0, 0.5, 0.5, 0, 1, 1, 0]
    assert rows.sft.tolist() == [0, 0, 1, 0, 0, 0.5, 0, 0, 0]
    assert not rows.off_policy.any()


@pytest.mark.parametrize("rl", [Surrogate(), PPOClip()], ids=str)
def test_the_loss_is_that_of_its_parts(rl: Any) -> None:
    b, hpt = batch(), HPT(0, 1, 0.3, rl)
    out = hpt.loss(**b, **GROUPS)
    rows = hpt.select(SOLVED, DEMONSTRATION)
    rest = b["old_log_probs"], b["advantages"]
    norm = {"aggregation": "seq-mean-token-sum-norm", "num_sequences": 3}  # 6 and 7; 5
    masks = [b["loss_mask"] & (row != 0)[:, None] for row in rows]
    expected = policy_loss(b["log_probs"], *rest, masks[0], objective=rl, **norm).loss
    expected += policy_loss(b["log_probs"], *rest, masks[1], objective=LUFFY(), **norm).loss
    expected += 0.3 * policy_loss(b["log_probs"], *rest, masks[2], objective=SFT()).loss
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert {"rl_ratio", "off_policy_ratio", "sft_policy_loss"} <= out.metrics.keys()
    log_probs = b["log_probs"].clone().requires_grad_()
    hpt.loss(**b | {"log_probs": log_probs}, **GROUPS).loss.backward()
    used = masks[0] | masks[1] | masks[2]
    assert not log_probs.grad[~used].any()
    if rl == Surrogate():  # which clips nothing
        assert log_probs.grad[used].all()


@pytest.mark.parametrize("hpt", [HPT(0, 1), SoftHPT((0.1, 0.5, 1.0), (1.0, 0.5, 0.1))], ids=str)
@pytest.mark.parametrize("packing", [[9], [3, 3, 3], [1, 6, 2], [1] * 9], ids=str)
def test_packing_does_not_move_the_balance(hpt: Any, packing: list[int]) -> None:
    """The authors' code sums means of micro-batches: there each way to pack has its own loss."""
    b = batch()
    rows = hpt.select(SOLVED, DEMONSTRATION)
    tokens = (b["loss_mask"] & (rows.sft != 0)[:, None]).sum()
    counts = {"num_sequences": 6, "num_sft_tokens": tokens, "horizon": T}
    whole = hpt.loss(**b, **GROUPS, **counts).loss
    total, at = 0.0, 0
    for size in packing:
        part = {k: v[at : at + size] for k, v in (b | GROUPS).items()}
        total, at = total + hpt.loss(**part, **counts).loss.item(), at + size
    assert total == pytest.approx(whole.item(), rel=1e-12)


def test_no_demonstration_and_nothing_at_all() -> None:
    b = batch()
    no = {"num_solved": SOLVED, "is_demonstration": torch.zeros(B, dtype=torch.bool)}
    assert HPT().loss(**b, **no).loss.isfinite()  # the code's mean over no token is NaN
    b["loss_mask"] = torch.zeros(B, T, dtype=torch.bool)
    b["log_probs"] = b["log_probs"] * math.nan
    assert HPT().loss(**b, **GROUPS).loss == 0


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        HPT().gate = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HPT(-1), r"^HPT.gate: expected at least 0, got -1"),
        (lambda: HPT(2, 1), r"^HPT.off_policy_gate: expected at least 2, got 1"),
        (lambda: HPT(sft_coef=0.0), r"^HPT.sft_coef: expected a finite number above 0, got 0.0"),
        (lambda: SoftHPT((1.0,), (1.0, 0.0)), r"^SoftHPT.sft_coefs: expected as many as rl_coefs"),
        (lambda: SoftHPT((), ()), r"^SoftHPT.sft_coefs: expected .* at least one, got 0"),
        (lambda: SoftHPT((-1.0,), (1.0,)), r"^SoftHPT.rl_coefs: expected a number of at least 0"),
        (lambda: SoftHPT((1.0,), (1.0,), KLCov()), r"^SoftHPT.rl: expected an objective that is l"),
        (
            lambda: HPT().select(SOLVED[:, None], DEMONSTRATION),
            r"^num_solved: expected shape \[B\], got \(9, 1\)",
        ),
        (
            lambda: HPT().select(SOLVED, DEMONSTRATION[:3]),
            r"^is_demonstration: expected shape \(9,\), got \(3,\)",
        ),
        (
            lambda: HPT().loss(
                **batch(), num_solved=SOLVED[:3], is_demonstration=DEMONSTRATION[:3]
            ),
            r"^loss_mask: expected shape \[3, T\], got \(9, 5\)",
        ),
    ],
)
def test_bad_arguments(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_bad_types() -> None:
    with pytest.raises(TypeError, match=r"^num_solved: expected int64 or int32, got float32"):
        HPT().select(SOLVED.float(), DEMONSTRATION)
    with pytest.raises(TypeError, match=r"^is_demonstration: expected bool, got int64"):
        HPT().select(SOLVED, DEMONSTRATION.long())
    with pytest.raises(TypeError, match=r"^objective: expected one of logpi.objectives"):
        HPT(rl="ppo")  # type: ignore[arg-type]
