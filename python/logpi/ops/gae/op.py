"""Generalised advantage estimation, as a linear recurrence.

    delta_t = r_t + gamma V_(t+1) - V_t
    A_t     = delta_t + gamma lam A_(t+1)          t + 1: the next token that the mask keeps
    G_t     = A_t + V_t

docs/ops/gae.md says how it becomes one recurrence, and how each row takes it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from logpi.core import checks, triton_row
from logpi.core.backends import AUTO, Backend, select

_HERE = "logpi.ops.gae."


class Gae(NamedTuple):
    """What `gae` returns: `[B, T]` each, 0 where the mask is False."""

    advantages: Tensor
    returns: Tensor


class Call(NamedTuple):
    """A checked call, as every row takes it."""

    rewards: Tensor  # [B, T] float32 or float64, contiguous
    values: Tensor  # the same
    loss_mask: Tensor  # [B, T] bool, contiguous
    gamma: float
    lam: float
    whiten: bool


def _needs_float32(call: Call) -> str | None:
    if call.rewards.dtype == torch.float64:
        return "serves float32 rewards and values, got float64"
    return None


def _needs_cpu(call: Call) -> str | None:
    if not call.rewards.is_cpu:
        return f"needs tensors on a CPU, got {call.rewards.device}"
    return _needs_float32(call)


def _needs_gpu(call: Call) -> str | None:
    return triton_row.misplaced("tensors", call.rewards) or _needs_float32(call)


BACKENDS = (  # the first row whose why_not answers None serves the call
    Backend("triton", _HERE + "_triton", why_not=_needs_gpu, unavailable=triton_row.unavailable),
    Backend("cpu", _HERE + "_native", why_not=_needs_cpu),
    Backend("torch", _HERE + "reference"),
)


def gae(
    rewards: Tensor,  # [B, T] or [B]
    values: Tensor,  # [B, T]
    loss_mask: Tensor,  # [B, T]
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    whiten: bool = True,
    backend: str = AUTO,
) -> Gae:
    """Advantages and returns of every token, from rewards and a critic's values.

    Args:
        rewards: `[B, T]` float32, bfloat16, float16 or float64, one a token; or `[B]`, one a
            sequence, which its last token gets.
        values: `[B, T]` of the critic, in float32 where the rewards are narrower.
        loss_mask: `[B, T]` bool (or numbers: 0 is False). Tokens where it is False are skipped as
            if they were not there (a tool's output in the middle of an answer, padding): the token
            before hands over to the token behind, undiscounted. They are never read.
        gamma: discount of a token, in [0, 1].
        lam: lambda, in [0, 1]. 0: one step ahead; 1: the whole return.
        whiten: advantages become (A - mean) / sqrt(var + 1e-8) over the tokens of the mask, var
            unbiased; with one token or none they are 0. Returns stay as they are. It is this
            batch's mean and variance: for those of more ranks, pass False and whiten after.
        backend: `"auto"`, or the name of a row (`"triton"`, `"cpu"`, `"torch"`). A named row
            serves or raises; it never falls back.

    Returns:
        `Gae(advantages, returns)`: `[B, T]` float32 (float64 if rewards and values are), without
        gradient, exactly 0 where the mask is False. Everything is added in float64 and rounded
        once. A row's bits depend on no other row, unless whitened.

    Raises:
        ValueError: a shape or value; names the argument, what was expected, what came.
        TypeError: a dtype.  BackendError: no row can serve; lists every row's reason.

    Memory: the two results; the `triton` row 8 bytes a token while it whitens; the `torch` row
        several float64 `[B, T]`.
    Source: docs/ops/gae.md.
    """
    call = check_call(rewards, values, loss_mask, gamma, lam, whiten)
    row = select("gae", BACKENDS, backend, call)
    if row.name == "torch":
        from logpi.ops.gae import reference  # torch.compile can trace this import

        return reference.forward(call)
    if torch.compiler.is_compiling():
        from logpi.ops.gae import _library

        return _library.gae(row.name, call)
    out: Gae = row.kernels.forward(call)
    return out


def check_call(
    rewards: Tensor, values: Tensor, loss_mask: Tensor, gamma: float, lam: float, whiten: bool
) -> Call:
    """The call, or a ValueError or TypeError that names the argument."""
    mask = check_mask(loss_mask)
    checks.dtype("rewards", rewards, *checks.FLOATS)
    checks.dtype("values", values, *checks.FLOATS)
    for name, x in (("rewards", rewards), ("values", values)):
        checks.device(name, x, mask.device)
    if (rewards.dtype == torch.float64) != (values.dtype == torch.float64):
        raise TypeError(
            "values: expected float64 with float64 rewards and with no others, got "
            f"{str(values.dtype).removeprefix('torch.')}"
        )
    if rewards.dim() == 1:
        checks.shape("rewards", rewards, mask.shape[:1])
        rewards = at_last_token(rewards, mask)
    checks.shape("rewards", rewards, mask.shape)
    checks.shape("values", values, mask.shape)
    for name, rate in (("gamma", gamma), ("lam", lam)):
        check_rate(name, rate)
    if not isinstance(whiten, bool):
        raise TypeError(f"whiten: expected a bool, got {type(whiten).__name__}")
    wide = torch.float64 if rewards.dtype == torch.float64 else torch.float32
    rewards, values = (x.detach().to(wide).contiguous() for x in (rewards, values))
    return Call(rewards, values, mask.contiguous(), float(gamma), float(lam), whiten)


def check_mask(loss_mask: Tensor) -> Tensor:
    checks.tensor("loss_mask", loss_mask)
    if loss_mask.dim() != 2:
        raise ValueError(f"loss_mask: expected shape [B, T], got {tuple(loss_mask.shape)}")
    return loss_mask.bool()


def check_rate(name: str, value: float) -> None:
    checks.number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number in [0, 1], got {value}")


def at_last_token(rewards: Tensor, mask: Tensor) -> Tensor:
    """`[B]` to `[B, T]`: at each sequence's last True."""
    behind = mask.flip(-1).cumsum(-1).flip(-1)
    return rewards[:, None].where(mask & (behind == 1), 0.0)
