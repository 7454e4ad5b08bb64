"""action_log_probs and episode_mask: against a policy that makes all logits and slices them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from logpi import ActionCodec, TokenLogProbs, action_log_probs, episode_mask, linear_log_probs
from logpi.ops.action_sampling import log_probs
from logpi.testing import assert_all_within_budget, bits, in_float64, outputs_and_gradients

if TYPE_CHECKING:
    from rows import Row

PADDING = 64  # rows of OpenVLA's head behind its vocabulary
V, D = 400, 24
CODEC = ActionCodec(num_bins=256, vocab_size=V)
ACTIONS = slice(V - 256, V)
B, S, CHUNK, DIM = 2, 2, 2, 3  # episodes, forwards of each, actions of a forward


def problem(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, ...]:
    """Hidden states [B, S, CHUNK * DIM, D], a padded head and its bias, ids."""
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(B, S, CHUNK * DIM, D, generator=random).to(dtype)
    weight = (0.5 * torch.randn(V + PADDING, D, generator=random)).to(dtype)
    bias = torch.randn(V + PADDING, generator=random).to(dtype)
    ids = torch.randint(V - 256, V, hidden.shape[:-1], generator=random)
    return hidden, weight, bias, ids


def ours(hidden: Tensor, weight: Tensor, bias: Tensor, ids: Tensor, **options: Any) -> Any:
    options = {"codec": CODEC, "return_entropy": True} | options
    return action_log_probs(hidden, weight, ids, bias=bias, **options)


def sliced(
    hidden: Tensor, weight: Tensor, bias: Tensor, ids: Tensor, temperature: Any = 1.0
) -> TokenLogProbs:
    """What a robot's trainer does: every logit, then columns -256-64 to -64, then the softmax."""
    logits = torch.nn.functional.linear(hidden, weight, bias)[..., -256 - PADDING : -PADDING]
    wide = logits if logits.dtype == torch.float64 else logits.float()
    divisor = temperature if isinstance(temperature, float) else temperature[..., None]
    log_p = (wide / divisor).log_softmax(-1)
    log_p_token = log_p.gather(-1, (ids - (V - 256))[..., None]).squeeze(-1)
    return TokenLogProbs(log_p_token, -(log_p.exp() * log_p).sum(-1), None, None, None, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_logits_and_a_slice(row: Row, dtype: torch.dtype) -> None:
    args = problem(dtype)
    per_token = 0.5 + torch.rand(B, S, CHUNK * DIM, generator=torch.Generator().manual_seed(7))
    if row.tiny and dtype != torch.float32:
        pytest.skip(f"{row}: slow, and proved at every dtype by the tests of linear_log_probs")
    for temperature in (per_token,) if row.tiny else (1.6, per_token):
        found = outputs_and_gradients(ours, *args, temperature=temperature, backend=row.backend)
        wide = temperature if isinstance(temperature, float) else temperature.double()
        assert_all_within_budget(
            found,
            outputs_and_gradients(sliced, *args, temperature=temperature),
            outputs_and_gradients(sliced, *in_float64(*args), temperature=wide),
        )


def test_other_rows_of_the_head_are_never_read(row: Row) -> None:
    hidden, weight, bias, ids = problem()
    expected = ours(hidden, weight, bias, ids, backend=row.backend)
    others = torch.ones(len(weight), dtype=torch.bool)
    others[ACTIONS] = False
    weight[others], bias[others] = torch.nan, torch.nan
    weight.requires_grad_()
    found = ours(hidden, weight, bias, ids, backend=row.backend)
    assert torch.equal(bits(found.log_probs), bits(expected.log_probs))
    assert torch.equal(bits(found.entropy), bits(expected.entropy))
    (found.log_probs.sum() + found.entropy.sum()).backward()
    assert not weight.grad[others].any()
    assert (weight.grad[ACTIONS] != 0).any(-1).all()


def test_tokens_after_the_end_take_part_in_nothing(row: Row) -> None:
    hidden, weight, bias, ids = problem()
    mask = episode_mask(torch.tensor([1, 4]), num_chunks=S, chunk_size=CHUNK, action_dim=DIM)
    assert mask.sum(-1).tolist() == [1 * DIM, 4 * DIM]
    mask = mask.unflatten(-1, (S, -1))
    poisoned = hidden.masked_fill(~mask[..., None], torch.nan).requires_grad_()
    expected = ours(hidden, weight, bias, ids, backend=row.backend)
    found = ours(poisoned, weight, bias, ids, loss_mask=mask, backend=row.backend)
    for one, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one, other.where(mask, 0.0), rtol=1e-5, atol=1e-5)
        assert not one[~mask].any()
    (found.log_probs + found.entropy).sum().backward()
    assert not poisoned.grad[~mask].any()
    assert poisoned.grad[mask].isfinite().all()
    assert (poisoned.grad[mask] != 0).any(-1).all()


def test_a_token_that_is_no_action_has_no_probability() -> None:
    hidden, weight, bias, ids = problem()
    ids[0, 0, 0] = 2  # </s>
    found = ours(hidden, weight, bias, ids).log_probs
    assert found[0, 0, 0] == -torch.inf
    assert found.isneginf().sum() == 1


def test_every_option_reaches_linear_log_probs(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = (
        dict(inspect.signature(f).parameters) for f in (action_log_probs, linear_log_probs)
    )
    del mine["codec"], theirs["support"], theirs["vocab_size"]
    assert mine == theirs  # names, order, defaults, annotations

    args = {name: torch.zeros(V, 1) if name == "weight" else object() for name in mine}
    reached: dict[str, Any] = {}
    monkeypatch.setattr(log_probs, "linear_log_probs", lambda *a, **k: reached.update(k, args=a))
    action_log_probs(codec=CODEC, **args)
    assert reached.pop("args") == tuple(args.pop(name) for name in list(args)[:3])
    assert reached == args | {"support": ACTIONS, "vocab_size": V}


def test_a_head_that_is_too_small() -> None:
    hidden, weight, _, ids = problem()
    with pytest.raises(ValueError, match=f"weight: expected at least {V} rows.* got 256"):
        action_log_probs(hidden, weight[ACTIONS], ids, codec=CODEC)
    with pytest.raises(TypeError, match=r"weight: expected a torch.Tensor"):
        action_log_probs(hidden, None, ids, codec=CODEC)  # type: ignore[arg-type]


# ---- episodes -----------------------------------------------------------------------------------

LIBERO = {"num_chunks": 64, "chunk_size": 8, "action_dim": 7}
ROBOTWIN = {"num_chunks": 8, "chunk_size": 25, "action_dim": 14}


@pytest.mark.parametrize(
    ("finish", "shape", "tokens", "whole", "partial"),
    [
        (0, LIBERO, 0, 0, 0),  # ended while it waited
        (1, LIBERO, 7, 0, 7),
        (11, LIBERO, 77, 1, 21),  # three actions into its second chunk
        (80, LIBERO, 560, 10, 0),
        (512, LIBERO, 3584, 64, 0),
        (25, ROBOTWIN, 350, 1, 0),  # which counts whole chunks
        (200, ROBOTWIN, 2800, 8, 0),
    ],
)
def test_episodes_of_the_benchmarks(
    finish: int, shape: dict[str, int], tokens: int, whole: int, partial: int
) -> None:
    mask = episode_mask(torch.tensor([finish]), **shape)
    length = shape["num_chunks"] * shape["chunk_size"] * shape["action_dim"]
    assert mask.tolist() == [[t < tokens for t in range(length)]]
    chunks = mask.unflatten(-1, (shape["num_chunks"], -1)).sum(-1)[0]
    per_chunk = shape["chunk_size"] * shape["action_dim"]
    assert (chunks == per_chunk).sum() == whole
    assert chunks.remainder(per_chunk).sum() == partial


def test_each_action_is_whole() -> None:
    """Of environment steps, not of tokens: against a loop that walks an episode."""
    finish = torch.tensor([[0, 1, 5], [6, 9, 12]], dtype=torch.int32)
    mask = episode_mask(finish, num_chunks=4, chunk_size=3, action_dim=2)
    assert mask.shape == (2, 3, 24)
    for at, steps in enumerate(finish.flatten().tolist()):
        expected = []
        for taken in range(4 * 3):
            expected += [taken < steps] * 2
        assert mask.flatten(0, 1)[at].tolist() == expected


def test_one_episode_alone() -> None:
    mask = episode_mask(torch.tensor(2), num_chunks=2, chunk_size=2, action_dim=1)
    assert mask.tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"finish_steps": torch.tensor([1.0])}, "finish_steps: expected int64 or int32, got float"),
        ({"finish_steps": 3}, "finish_steps: expected a torch.Tensor, got int"),
        ({"finish_steps": torch.tensor([2, 17])}, "finish_steps: expected 0 to 16 .* got 17"),
        ({"finish_steps": torch.tensor([-1, 3])}, "finish_steps: expected 0 to 16 .* got -1"),
        ({"num_chunks": 0}, "num_chunks: expected at least 1, got 0"),
        ({"chunk_size": 2.0}, "chunk_size: expected an int, got float"),
        ({"action_dim": -7}, "action_dim: expected at least 1, got -7"),
    ],
)
def test_bad_episodes(change: dict[str, Any], message: str) -> None:
    good = {"finish_steps": torch.tensor([3]), "num_chunks": 2, "chunk_size": 8, "action_dim": 7}
    with pytest.raises((TypeError, ValueError), match=message):
        episode_mask(**good | change)


def test_compiled_whole() -> None:
    compiled = torch.compile(episode_mask, fullgraph=True, backend="eager")
    shape = {"num_chunks": 2, "chunk_size": 8, "action_dim": 7}
    finish = torch.tensor([3, 16])
    assert torch.equal(compiled(finish, **shape), episode_mask(finish, **shape))
