"""FlowRL's loss and its metrics, forward and backward in one pass over the log-probs each.

    delta_i = log_z_i + mean_t log_probs - reward_scale * reward_i - mean_t ref_log_probs
    w_i     = stop-gradient of exp(sum_t (log_probs - old_log_probs)), bounded
    loss    = sum_i w_i delta_i^2 / num_sequences

A sequence's gradient is one number at all of its tokens, so the forward keeps two numbers a
sequence and the backward reads the mask alone. docs/ops/flow_balance.md derives it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from logpi.core import checks, cuda, triton_row
from logpi.core.backends import AUTO, Backend, select
from logpi.core.metrics import Metrics

_HERE = "logpi.ops.flow_balance."

# Means over the tokens of the mask, then means over the sequences.
METRICS = ("log_prob", "old_log_prob", "ref_log_prob", "ppo_kl", "ref_kl",
           "log_z", "scaled_reward", "residual", "importance_weight", "clip_fraction")  # fmt: skip
_PLACES = {name: at for at, name in enumerate(METRICS)}
DEFAULT_MAX_WEIGHT = 10.0


class FlowBalanceLoss(NamedTuple):
    """What `flow_balance_loss` returns. The metrics are 0-d, on the device, without gradient."""

    loss: Tensor
    metrics: Metrics


class Call(NamedTuple):
    """A checked call, as every row takes it. All floats are of one dtype."""

    log_probs: Tensor  # [B, T], any strides
    ref_log_probs: Tensor  # [B, T], any strides
    old_log_probs: Tensor  # [B, T], any strides
    rewards: Tensor  # [B]
    log_z: Tensor  # [B]
    loss_mask: Tensor  # [B, T] bool, any strides
    divisor: Tensor | None  # 0-d float64; None: the number
    num_sequences: float  # 0: B
    reward_scale: float
    low: float  # bounds of the weight; 0: none below
    high: float

    def log_bounds(self) -> tuple[float, float]:
        return math.log(self.low) if self.low else -math.inf, math.log(self.high)

    def divided_by(self) -> Tensor | float:
        if self.divisor is not None:
            return self.divisor
        return self.num_sequences or max(len(self.log_z), 1)


def _needs_float32(call: Call) -> str | None:
    if call.log_probs.dtype == torch.float64:
        return "serves float32, got float64"
    return None


def _needs_cpu(call: Call) -> str | None:
    if not call.log_probs.is_cpu:
        return f"needs log_probs on a CPU, got {call.log_probs.device}"
    return _needs_float32(call)


def _needs_cuda(call: Call) -> str | None:
    if call.log_probs.device.type != cuda.device_type():
        return f"needs log_probs on an NVIDIA GPU, got {call.log_probs.device}"
    return _needs_float32(call)


def _needs_gpu(call: Call) -> str | None:
    return triton_row.misplaced("log_probs", call.log_probs) or _needs_float32(call)


BACKENDS = (  # the first row whose why_not answers None serves the call
    Backend("cuda", _HERE + "_cuda", why_not=_needs_cuda, unavailable=cuda.unavailable),
    Backend("triton", _HERE + "_triton", why_not=_needs_gpu, unavailable=triton_row.unavailable),
    Backend("cpu", _HERE + "_native", why_not=_needs_cpu),
    Backend("torch", _HERE + "reference"),
)


def flow_balance_loss(
    log_probs: Tensor,  # [B, T]
    ref_log_probs: Tensor,  # [B, T]
    old_log_probs: Tensor,  # [B, T]
    rewards: Tensor,  # [B]
    log_z: Tensor,  # [B]
    loss_mask: Tensor,  # [B, T]
    *,
    reward_scale: float = 15.0,
    max_importance_weight: float = DEFAULT_MAX_WEIGHT,
    clip_ratio_low: float | None = None,
    clip_ratio_high: float | None = None,
    num_sequences: int | float | Tensor | None = None,
    backend: str = AUTO,
) -> FlowBalanceLoss:
    """FlowRL's trajectory balance: the policy's flow against a reward-tilted reference.

        delta = log_z + mean(log_probs) - reward_scale * rewards - mean(ref_log_probs)
        weight = exp(sum(log_probs - old_log_probs)), bounded, without gradient
        loss = sum(weight * delta^2) / num_sequences

    Means and the sum in the weight are over the tokens of a sequence; the latter is a sum in the
    paper and in the authors' code, and so grows with the length.

    Args:
        log_probs: `[B, T]` of the policy, float32 or float64 (bfloat16 and float16 are widened),
            any strides: `x[:, :-1]` is read where it lies. Gradient flows.
        ref_log_probs: `[B, T]` of the reference. No gradient flows, nor into the next two.
        old_log_probs: `[B, T]` of the policy before the update. Pass `log_probs.detach()` when
            there is one step a batch: every weight is then exactly 1.
        rewards: `[B]`, normalised within their groups.
        log_z: `[B]`, as `LogPartition` gives it. Gradient flows.
        loss_mask: `[B, T]` bool (or numbers: 0 is False). What lies where it is False is never
            read, NaN included, and has gradient 0. A sequence without a token has mean and reward
            0 and weight 1: it adds log_z^2, as in the authors' code. Leave such rows out, or give
            them log_z 0, if that is not wanted.
        reward_scale: the paper's beta.
        max_importance_weight: the weight is `min(weight, this)`, as in the authors' later code;
            above 0. `math.inf`: no bound but the largest number of the dtype, with which the loss
            may be inf, though never NaN for that.
        clip_ratio_low: with `clip_ratio_high`, the paper's weight instead: clipped to [1 - low,
            1 + high]. From 1 on there is no lower bound.
        clip_ratio_high: the other one. Both or neither.
        num_sequences: what to divide by; None: B, sequences without a token included. Over
            micro-batches: the sequences of all of them. Over ranks whose gradients are averaged:
            the sequences of all, divided by the number of ranks. A 0-d tensor is not read on the
            host (float64 ones are used as they are, others are converted first).
        backend: `"auto"`, or the name of a row (`"cuda"`, `"triton"`, `"cpu"`, `"torch"`). A named
            row serves or raises; it never falls back.

    Returns:
        `FlowBalanceLoss(loss, metrics)`: 0-d tensors, float32 (float64 for float64 log-probs);
        `metrics.floats()` reads all at once.
        Means over tokens: "log_prob", "old_log_prob", "ref_log_prob", "ppo_kl" (old - new) and
        "ref_kl" (ref - new). Means over the B sequences: "log_z", "scaled_reward", "residual"
        (delta), "importance_weight" and "clip_fraction" (of weights that a bound has changed).
        Sums are float64 on every row, in an order set by the shape alone: the same bits each time.
        A sequence's gradient has the same bits in any batch, for the same `num_sequences`.

    Raises:
        ValueError: a shape or value; one clip ratio alone; a bound beside the clip ratios.
        TypeError: a dtype.  BackendError: no row can serve; lists every row's reason.

    Memory: 16 bytes a sequence until the backward, and the gradient. Kernels are differentiated
        once; the `torch` row any number of times.
    Source: FlowRL (arXiv:2509.15207). docs/ops/flow_balance.md says where its code departs.
    """
    call = check_call(
        log_probs, ref_log_probs, old_log_probs, rewards, log_z, loss_mask, reward_scale,
        max_importance_weight, clip_ratio_low, clip_ratio_high, num_sequences,
    )  # fmt: skip
    row = select("flow_balance_loss", BACKENDS, backend, call)
    if row.name == "torch":  # the definition itself; torch differentiates it
        from logpi.ops.flow_balance import reference  # torch.compile can trace this import

        loss, metrics = reference.flow_balance_loss(call)
    elif torch.compiler.is_compiling():
        from logpi.ops.flow_balance._library import flow_balance_loss as compiled

        loss, metrics = compiled(row.name, call)
    elif torch.is_grad_enabled() and (call.log_probs.requires_grad or call.log_z.requires_grad):
        loss, metrics = _FlowBalance.apply(call.log_probs, call.log_z, call, row)  # type: ignore[no-untyped-call]
    else:
        loss, metrics, _ = row.kernels.forward(call)
    return FlowBalanceLoss(loss, Metrics(metrics, _PLACES))


class _FlowBalance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, log_probs: Tensor, log_z: Tensor, call: Call, row: Backend
    ) -> tuple[Tensor, Tensor]:
        loss, metrics, slopes = row.kernels.forward(call)
        ctx.save_for_backward(call.loss_mask, slopes)
        ctx.row = row
        ctx.mark_non_differentiable(metrics)
        ctx.set_materialize_grads(False)
        return loss, metrics

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        checks.differentiated_once("flow_balance_loss")
        if grad_loss is None:
            return None, None, None, None
        grads = ctx.row.kernels.backward(*ctx.saved_tensors, grad_loss, ctx.needs_input_grad[:2])
        return (*grads, None, None)


def check_call(
    log_probs: Tensor,
    ref_log_probs: Tensor,
    old_log_probs: Tensor,
    rewards: Tensor,
    log_z: Tensor,
    loss_mask: Tensor,
    reward_scale: float,
    max_importance_weight: float,
    clip_ratio_low: float | None,
    clip_ratio_high: float | None,
    num_sequences: int | float | Tensor | None,
) -> Call:
    """The call, or a ValueError or TypeError that names the argument."""
    checks.dtype("log_probs", log_probs, *checks.FLOATS)
    if log_probs.dim() != 2:
        raise ValueError(f"log_probs: expected shape [B, T], got {tuple(log_probs.shape)}")
    tokens, device = log_probs.shape, log_probs.device
    sequences = tokens[:1]
    wide = torch.float64 if log_probs.dtype == torch.float64 else torch.float32
    checks.tensor("loss_mask", loss_mask)
    if loss_mask.shape != tokens or loss_mask.device != device:
        checks.shape("loss_mask", loss_mask, tokens)
        checks.device("loss_mask", loss_mask, device)

    def floats(name: str, value: Tensor, shape: torch.Size) -> Tensor:
        # Most are as they should be: four questions instead of four calls.
        plain = isinstance(value, Tensor) and value.dtype == wide
        if plain and value.shape == shape and value.device == device:
            return value
        checks.dtype(name, value, *checks.FLOATS)
        checks.shape(name, value, shape)
        checks.device(name, value, device)
        return value.to(wide)

    given = (
        log_probs if log_probs.dtype == wide else log_probs.to(wide),
        floats("ref_log_probs", ref_log_probs, tokens),
        floats("old_log_probs", old_log_probs, tokens),
        floats("rewards", rewards, sequences),
        floats("log_z", log_z, sequences),
        loss_mask if loss_mask.dtype == torch.bool else loss_mask.bool(),
    )
    checks.number("reward_scale", reward_scale)
    low, high = _bounds(max_importance_weight, clip_ratio_low, clip_ratio_high)
    high = min(high, torch.finfo(wide).max)
    count = 0.0
    if num_sequences is None:
        divisor = None
    elif isinstance(num_sequences, Tensor):
        divisor = _divisor(num_sequences, device)
    else:
        checks.positive("num_sequences", num_sequences)
        divisor, count = None, float(num_sequences)
    return Call(*given, divisor, count, float(reward_scale), low, high)


def _bounds(largest: float, low: float | None, high: float | None) -> tuple[float, float]:
    """Of the weight: the code's or the paper's."""
    if low is None and high is None:
        if largest != math.inf:
            checks.positive("max_importance_weight", largest)
        return 0.0, float(largest)
    if low is None or high is None:
        name, other = ("low", "high") if low is None else ("high", "low")
        raise ValueError(
            f"clip_ratio_{name}: expected a number where there is clip_ratio_{other}, got None"
        )
    if largest != DEFAULT_MAX_WEIGHT:
        raise ValueError(
            "max_importance_weight: expected its default where clip_ratio_low and clip_ratio_high "
            f"bound the weight, got {largest}"
        )
    checks.not_negative("clip_ratio_low", low)
    checks.not_negative("clip_ratio_high", high)
    return max(1.0 - low, 0.0), 1.0 + high


def _divisor(given: Tensor, device: torch.device) -> Tensor:
    if given.dim():
        raise ValueError(
            f"num_sequences: expected a number or a 0-d tensor, got shape {tuple(given.shape)}"
        )
    checks.device("num_sequences", given, device)
    if device.type == "cpu" and not torch.compiler.is_compiling():
        checks.positive("num_sequences", given.item())
    return given.detach().to(torch.float64)
