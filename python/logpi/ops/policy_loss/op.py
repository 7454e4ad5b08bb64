"""The loss of a policy update, its gradient and its metrics, in one pass over the tokens.

    loss = sum w (v token_loss + kl.coef * kl - entropy_coef * entropy)

with w from the aggregation, v from `importance`. A kernel forms the gradient as it forms the loss;
the backward multiplies it by a scalar. docs/ops/policy_loss.md has the formulas.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from logpi.core import checks, triton_row
from logpi.core.backends import AUTO, Backend, select
from logpi.core.masked import Count, sequence_weights
from logpi.core.metrics import Metrics
from logpi.ops.policy_loss import encoding
from logpi.ops.policy_loss.base import Objective
from logpi.ops.policy_loss.importance import RolloutImportance
from logpi.ops.policy_loss.kl import ESTIMATORS, KL
from logpi.ops.policy_loss.loss import PolicyLoss, sums_of
from logpi.ops.policy_loss.objectives import PPOClip

_HERE = "logpi.ops.policy_loss."


class Call(NamedTuple):
    """A checked call: float32 or float64 tensors `[B, T]`, whatever lies outside the mask."""

    log_probs: Tensor
    entropy: Tensor | None
    old_log_probs: Tensor
    advantages: Tensor  # [B, T] or [B, 1]
    loss_mask: Tensor  # bool
    weights: Tensor  # [B, 1] or [1, 1] float64
    ref_log_probs: Tensor | None
    importance: Tensor | None
    selection: Tensor | None  # bool
    objective: Objective
    kl: KL | None
    entropy_coef: float


class Encoded(NamedTuple):
    """The call as kernels take it."""

    log_probs: Tensor
    entropy: Tensor | None
    old_log_probs: Tensor
    advantages: Tensor
    loss_mask: Tensor
    weights: Tensor  # [B] or [1] float64
    ref_log_probs: Tensor | None
    importance: Tensor | None
    selection: Tensor | None
    kind: int
    a: float
    b: float
    c: float
    estimator: int
    kl_coef: float
    entropy_coef: float


def _needs_a_formula(call: Call) -> str | None:
    if call.log_probs.dtype == torch.float64:
        return "serves float32, bfloat16 and float16 log_probs, got float64"
    if type(call.objective) not in encoding.KINDS:
        name, why = type(call.objective).__name__, call.objective.depends_on
        return f"has no kernel for {name}, of which a token's gradient depends on {why}"
    return None


def _needs_plain_cpu(call: Call) -> str | None:
    if not call.log_probs.is_cpu:
        return f"needs log_probs on a CPU, got {call.log_probs.device}"
    return _needs_a_formula(call)


def _needs_plain_gpu(call: Call) -> str | None:
    return triton_row.misplaced("log_probs", call.log_probs) or _needs_a_formula(call)


BACKENDS = (  # the first row whose why_not answers None serves the call
    Backend(
        "triton", _HERE + "_triton", why_not=_needs_plain_gpu, unavailable=triton_row.unavailable
    ),
    Backend("cpu", _HERE + "_native", why_not=_needs_plain_cpu),
    Backend("torch", _HERE + "reference"),
)


def policy_loss(
    log_probs: Tensor,  # [B, T]
    old_log_probs: Tensor,  # [B, T]
    advantages: Tensor,  # [B, T] or [B]
    loss_mask: Tensor,  # [B, T]
    *,
    objective: Objective = PPOClip(),  # noqa: B008  frozen
    aggregation: str = "token-mean",
    ref_log_probs: Tensor | None = None,  # [B, T]
    kl: KL | None = None,
    entropy: Tensor | None = None,  # [B, T]
    entropy_coef: float = 0.0,
    rollout_log_probs: Tensor | None = None,  # [B, T]
    importance: RolloutImportance | None = None,
    num_tokens: Count = None,
    num_sequences: Count = None,
    horizon: float | None = None,
    selection: Tensor | None = None,  # [B, T]
    backend: str = AUTO,
) -> PolicyLoss:
    """The loss of a policy update and its metrics.

        loss = sum_bt w_b (v_bt token_loss_bt + kl.coef * kl_bt - entropy_coef * entropy_bt)

    Args:
        log_probs: `[B, T]` of the policy, float32, bfloat16, float16 (both made float32 at the
            door) or float64. Gradient flows.
        old_log_probs: `[B, T]` of the policy before the update. No gradient, as for all the rest.
        advantages: `[B, T]`, or `[B]`, one a sequence.
        loss_mask: `[B, T]` bool (or numbers: 0 is False). Tokens where it is False have gradient
            exactly 0 and no part in anything, whatever they hold.
        objective: of `logpi.objectives`.
        aggregation: what w is: "token-mean", "token-sum", "seq-mean-token-sum",
            "seq-mean-token-mean" or "seq-mean-token-sum-norm" (`logpi.core.masked`). Sequences
            without a token do not count.
        ref_log_probs: `[B, T]` of the reference policy; with `kl`.
        kl: `KL(coef, estimator)`, a penalty against `ref_log_probs`. None: none.
        entropy: `[B, T]`. Gradient flows if `entropy_coef` is not 0. None: no metric of it.
        entropy_coef: multiplies the entropy, which is subtracted.
        rollout_log_probs: `[B, T]` as the sampler reported them; with `importance`.
        importance: `RolloutImportance(..)`: v, from `old_log_probs - rollout_log_probs`, multiplies
            the objective's loss, and neither penalty nor bonus. None: v = 1.
        num_tokens: what "token-mean" divides by; None: the tokens of `loss_mask`. Of all
            micro-batches, or all ranks (divided by the ranks whose gradients are averaged). A
            0-d tensor is not read on the host.
        num_sequences: the same for "seq-mean-*".
        horizon: what "seq-mean-token-sum-norm" divides by beside it; None: T.
        selection: `[B, T]` bool, of ClipCov (True: dropped) and KLCov (True: penalised), from
            `clip_cov_mask` and `kl_cov_mask`.
        backend: `"auto"`, or the name of a row (`"triton"`, `"cpu"`, `"torch"`). A named row serves
            or raises; it never falls back.

    Returns:
        `PolicyLoss(loss, metrics)`: 0-d tensors on the device, float32 (float64 for float64
        log_probs), nothing read on the host; `metrics.floats()` reads all at once. Means over the
        tokens of `loss_mask`: "ratio", "approx_kl_k1", "approx_kl_k3", "kl" with `kl`, "entropy"
        with it, "rollout_*" with `importance`, and the objective's `fractions`. "policy_loss" is
        the objective's part of the loss.

    Raises:
        ValueError: a shape or value.  TypeError: a dtype.
        BackendError: no row can serve; lists every row's reason.

    Memory: one float32 a token for the gradient, another for that of the entropy. The `torch` row
        needs a dozen; it alone can be differentiated twice.
    Source: docs/ops/policy_loss.md.
    """
    call, told = _check(
        log_probs, old_log_probs, advantages, loss_mask, objective, aggregation, ref_log_probs, kl,
        entropy, entropy_coef, rollout_log_probs, importance, num_tokens, num_sequences, horizon,
        selection,
    )  # fmt: skip
    row = select("policy_loss", BACKENDS, backend, call)
    if row.name == "torch":  # the definition itself; torch differentiates it
        from logpi.ops.policy_loss import reference

        out: PolicyLoss = reference.policy_loss(call)
    else:
        out = _by_kernel(row, call)
    if told:
        totals = sums_of(told, call.loss_mask)
        totals["tokens"] = call.loss_mask.sum(dtype=torch.float64)
        tokens = totals.pop("tokens").clamp(min=1)
        means = {k: (v / tokens).to(call.log_probs.dtype) for k, v in totals.items()}
        out = PolicyLoss(out.loss, Metrics({**out.metrics, **means}))
    return out


def _by_kernel(row: Backend, call: Call) -> PolicyLoss:
    encoded = encode(call)
    gradients = torch.is_grad_enabled()
    with_log_probs = gradients and call.log_probs.requires_grad
    with_entropy = gradients and call.entropy_coef != 0 and _requires_grad(call.entropy)
    if torch.compiler.is_compiling():
        from logpi.ops.policy_loss import _library

        loss, values = _library.policy_loss(row.name, encoded, with_log_probs, with_entropy)
    elif with_log_probs or with_entropy:
        loss, values = _PolicyLoss.apply(  # type: ignore[no-untyped-call]
            call.log_probs, call.entropy, encoded, row, with_log_probs, with_entropy
        )
    else:
        loss, values, _, _ = row.kernels.forward(encoded, False, False)
    places = encoding.written(call.objective, call.kl is not None, call.entropy is not None)
    return PolicyLoss(loss, Metrics(values, places))


class _PolicyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        log_probs: Tensor,
        entropy: Tensor | None,
        encoded: Encoded,
        row: Backend,
        with_log_probs: bool,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        loss, values, *grads = row.kernels.forward(encoded, with_log_probs, with_entropy)
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(values)
        return loss, values

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: None) -> tuple[Tensor | None, ...]:
        checks.differentiated_once("policy_loss")
        scaled = (None if grad is None else grad * grad_loss for grad in ctx.saved_tensors)
        return (*scaled, None, None, None, None)


def encode(call: Call) -> Encoded:
    kl, (kind, a, b, c) = call.kl, encoding.kind_and_knobs(call.objective)
    return Encoded(
        call.log_probs.contiguous(),
        None if call.entropy is None else call.entropy.contiguous(),
        call.old_log_probs.contiguous(),
        call.advantages.contiguous(),
        call.loss_mask.contiguous(),
        call.weights.view(-1),
        None if call.ref_log_probs is None else call.ref_log_probs.contiguous(),
        None if call.importance is None else call.importance.contiguous(),
        None if call.selection is None else call.selection.contiguous(),
        kind,
        a,
        b,
        c,
        -1 if kl is None else ESTIMATORS.index(kl.estimator),
        0.0 if kl is None else float(kl.coef),
        call.entropy_coef,
    )


def _requires_grad(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad


def _check(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    objective: Objective,
    aggregation: str,
    ref_log_probs: Tensor | None,
    kl: KL | None,
    entropy: Tensor | None,
    entropy_coef: float,
    rollout_log_probs: Tensor | None,
    importance: RolloutImportance | None,
    num_tokens: Count,
    num_sequences: Count,
    horizon: float | None,
    selection: Tensor | None,
) -> tuple[Call, dict[str, Tensor]]:
    """The call, and what `importance` has to tell."""
    check_objective(objective)
    checks.dtype("log_probs", log_probs, *checks.FLOATS)
    if log_probs.dim() != 2:
        raise ValueError(f"log_probs: expected shape [B, T], got {tuple(log_probs.shape)}")
    shape, device = log_probs.shape, log_probs.device
    wide = torch.float64 if log_probs.dtype == torch.float64 else torch.float32

    def per_token(name: str, value: Tensor, shape: torch.Size = shape) -> Tensor:
        checks.dtype(name, value, *checks.FLOATS)
        if value.shape != shape:
            checks.shape(name, value, shape)
        checks.device(name, value, device)
        return value if value.dtype == wide else value.to(wide)

    mask = _flags("loss_mask", loss_mask, shape, device)
    check_penalties(kl, ref_log_probs, entropy_coef)
    if entropy_coef and entropy is None:
        raise ValueError(f"entropy: expected one where there is entropy_coef={entropy_coef}")
    if importance is not None and not isinstance(importance, RolloutImportance):
        raise TypeError(
            f"importance: expected a RolloutImportance, got {type(importance).__name__}"
        )
    _both("importance", importance, "rollout_log_probs", rollout_log_probs)
    by, name = objective.selected_by, type(objective).__name__
    if by and selection is None:
        raise ValueError(f"selection: expected what logpi.{by} returns, for {name}, got None")
    if selection is not None:
        if not by:
            raise ValueError(f"selection: expected None, as {name} does not use it")
        checks.dtype("selection", selection, torch.bool)
        selection = _flags("selection", selection, shape, device)
    if isinstance(advantages, Tensor) and advantages.dim() == 1:
        one_each = per_token("advantages", advantages, shape[:1])[:, None]
    else:
        one_each = per_token("advantages", advantages)
    old = without_gradient(per_token("old_log_probs", old_log_probs))
    v: Tensor | None = None
    told: dict[str, Tensor] = {}
    if importance is not None and rollout_log_probs is not None:
        rollout = per_token("rollout_log_probs", rollout_log_probs).detach()
        v, told = importance.weights(old, rollout, mask)
    call = Call(
        per_token("log_probs", log_probs),
        None if entropy is None else per_token("entropy", entropy),
        old,
        without_gradient(one_each),
        mask,
        sequence_weights(
            mask, aggregation, num_tokens=num_tokens, num_sequences=num_sequences, horizon=horizon
        ),
        None if ref_log_probs is None else per_token("ref_log_probs", ref_log_probs).detach(),
        v,
        selection,
        objective,
        kl,
        float(entropy_coef),
    )
    return call, told


def without_gradient(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.requires_grad else tensor


def _flags(name: str, value: Tensor, shape: torch.Size, device: torch.device) -> Tensor:
    checks.tensor(name, value)
    if value.shape != shape:
        checks.shape(name, value, shape)
    checks.device(name, value, device)
    return value if value.dtype == torch.bool else value.bool()


def check_objective(objective: Objective) -> None:
    if not isinstance(objective, Objective):
        raise TypeError(
            f"objective: expected one of logpi.objectives, got {type(objective).__name__}"
        )


def check_penalties(kl: KL | None, ref_log_probs: Tensor | None, entropy_coef: float) -> None:
    checks.number("entropy_coef", entropy_coef)
    if kl is not None and not isinstance(kl, KL):
        raise TypeError(f"kl: expected a KL of logpi.objectives, got {type(kl).__name__}")
    _both("kl", kl, "ref_log_probs", ref_log_probs, " (KL(0.0) reports only)")


def _both(name: str, value: Any, other: str, beside: Any, hint: str = "") -> None:
    """Either needs the other."""
    if (value is None) != (beside is None):
        missing, there = (name, other) if value is None else (other, name)
        raise ValueError(f"{missing}: expected one where there is {there}, got None{hint}")
