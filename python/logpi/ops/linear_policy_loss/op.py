"""The loss of a policy, and its gradients, from hidden states and the head's weight.

    log_probs, entropy = linear_log_probs(hidden_states, weight, token_ids)
    loss = sum w (token_loss + kl.coef * kl - entropy_coef * entropy)

What a token-level loss makes of a log-prob depends on that token alone, so d loss / d logits is
known as soon as a row of logits is: the forward forms the gradients, and no logits are made twice.
docs/ops/linear_policy_loss.md derives it and says what it costs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from logpi.core import checks
from logpi.core.backends import AUTO, Backend, select
from logpi.core.masked import token_weights
from logpi.core.metrics import Metrics
from logpi.core.support import KeepSet
from logpi.ops.linear_log_probs import BACKENDS as LINEAR_BACKENDS
from logpi.ops.linear_log_probs.op import LinearCall, check_linear_call, no_autocast
from logpi.ops.policy_loss.base import TokenObjective, Tokens
from logpi.ops.policy_loss.kl import KL
from logpi.ops.policy_loss.loss import Formula, PolicyLoss
from logpi.ops.policy_loss.objectives import PPOClip
from logpi.ops.policy_loss.op import check_objective, check_penalties


class PolicyCall(NamedTuple):
    """A checked call: the head's, and what is made of its log-probs and entropies."""

    linear: LinearCall
    formula: Formula
    tokens: Tokens  # [N] each

    @property
    def dtype(self) -> torch.dtype:
        """Of the loss and of everything a row."""
        return self.tokens.weights.dtype


def _needs_autograd(call: LinearCall) -> str | None:
    if call.weight_grad is not None:
        return "leaves gradients to autograd and takes no weight_grad"
    return None


BACKENDS = (  # the first row whose why_not answers None serves the call
    *(row for row in LINEAR_BACKENDS if row.name != "torch"),
    Backend("torch", "logpi.ops.linear_policy_loss.reference", why_not=_needs_autograd),
)


def linear_policy_loss(
    hidden_states: Tensor,  # [B, T, D]
    weight: Tensor,  # [V, D]
    token_ids: Tensor,  # [B, T]
    old_log_probs: Tensor,  # [B, T]
    advantages: Tensor,  # [B, T] or [B]
    loss_mask: Tensor,  # [B, T]
    *,
    objective: TokenObjective = PPOClip(),  # noqa: B008  frozen
    aggregation: str = "token-mean",
    ref_log_probs: Tensor | None = None,  # [B, T]
    kl: KL | None = None,
    entropy_coef: float = 0.0,
    num_tokens: int | float | Tensor | None = None,
    num_sequences: int | float | Tensor | None = None,
    bias: Tensor | None = None,  # [V]
    temperature: float | Tensor = 1.0,
    support: slice | None = None,
    vocab_size: int | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    logits_dtype: torch.dtype | None = None,
    workspace_bytes: int | None = None,
    weight_grad: Tensor | None = None,  # [V, D]
    backend: str = AUTO,
) -> PolicyLoss:
    """The loss of a policy update and its metrics; gradients are made on the way, in 3 products.

        loss = sum_i w_i (token_loss_i + kl.coef * kl_i - entropy_coef * entropy_i)

    with log-probs and entropies as `linear_log_probs` returns them, w as
    `logpi.core.masked.token_weights` has them for the aggregation.

    Args:
        hidden_states: `[B, T, D]` float32, bfloat16, float16 or float64. Gradient flows.
        weight: `[V, D]`. Gradient flows; a frozen head costs 2 products, a frozen body 2, both 1.
            A sharded weight is refused; for one that is spread over ranks see `linear_log_probs`.
        token_ids: `[B, T]` int64 (or int32), each in [0, vocab_size).
        old_log_probs: `[B, T]` of the policy before the update. No gradient, as for the next two.
        advantages: `[B, T]`, or `[B]`, one a sequence.
        ref_log_probs: `[B, T]` of the reference policy; with `kl`.
        loss_mask: `[B, T]` bool (or numbers: 0 is False). Rows where it is False are left out of
            every product: their gradient is exactly 0, whatever they hold.
        objective: of `logpi.objectives`, a token-level one.
        aggregation: "token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean" or
            "seq-mean-token-sum-norm". Sequences without a token do not count.
        kl: `KL(coef, estimator)`, a penalty against `ref_log_probs`. None: none.
        entropy_coef: multiplies the entropy, which is subtracted. 0 still reports its mean.
        num_tokens: what "token-mean" divides by; None: the tokens of `loss_mask`. Of all
            micro-batches, or all ranks (divided by the ranks whose gradients are averaged). A
            0-d tensor is not read on the host.
        num_sequences: the same for "seq-mean-*".
        bias, temperature, vocab_size, softcap, logit_scale, logits_dtype: as in
            `linear_log_probs`.
        support: None or `slice(a, b)`; a `KeepSet` is refused.
        workspace_bytes: the most that logits may take at a time. None: those of 512 rows on a CPU,
            of 4096 on a GPU. Half the rows make the weight's accumulator travel twice as often.
        weight_grad: a buffer `[V, D]` to which the weight's gradient is added in place, in the
            forward, for an upstream gradient of 1; autograd then gets none for `weight`. Scale by
            `num_tokens` or `num_sequences` instead: a backward with another upstream gradient
            raises on a CPU and leaves NaN on a GPU.
        backend: `"auto"`, or the name of a row (`"cuda"`, `"triton"`, `"cpu"`, `"torch"`). A named
            row serves or raises; it never falls back.

    Returns:
        `PolicyLoss(loss, metrics)`: 0-d tensors, float32 (float64 for float64 input), nothing
        read on the host; `metrics.floats()` reads all at once. Means over the tokens of
        `loss_mask`: "entropy", "ratio", "approx_kl_k1", "approx_kl_k3", "kl" with `kl`,
        "clip_fraction_low" and "clip_fraction_high" (and "_dual") of objectives that clip.
        "policy_loss" is the objective's part of the loss. The loss can be differentiated once: its
        backward hands over the gradients that the forward made, times the upstream gradient.

    Raises:
        ValueError: a shape or value; a sequence-level objective; a `KeepSet`.
        TypeError: a dtype, or a sharded weight.  BackendError: no row can serve.
        RuntimeError: in a second backward.

    Memory: the logits of a chunk of rows (`workspace_bytes`), and until the backward the gradients
        themselves. With more rows than fit, the weight's gradient adds up in float32: a `[V, D]`
        float32 buffer, unless `weight_grad` is given; with fewer it is written once, in the
        weight's dtype. Without grad mode as `linear_log_probs`.
    Waits: on a GPU as `linear_log_probs`, for the number of rows that take part. The upstream
        gradient is not read: multiplying by it reads and writes the gradients once.
    Source: docs/ops/linear_policy_loss.md.
    """
    call = _check(
        hidden_states, weight, token_ids, old_log_probs, advantages, loss_mask, objective,
        aggregation, ref_log_probs, kl, entropy_coef, num_tokens, num_sequences, bias, temperature,
        support, vocab_size, softcap, logit_scale, logits_dtype, workspace_bytes, weight_grad,
    )  # fmt: skip
    row = select("linear_policy_loss", BACKENDS, backend, call.linear)
    if row.name == "torch":  # the definition itself; torch differentiates it
        from logpi.ops.linear_policy_loss import reference

        out: PolicyLoss = reference.linear_policy_loss(call)
        return out
    tensors = call.linear.hidden_states, call.linear.weight, call.linear.bias
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        loss, metrics = _LinearPolicyLoss.apply(*tensors, call, row)  # type: ignore[no-untyped-call]
        return PolicyLoss(loss, metrics)
    from logpi.ops.linear_policy_loss import _chunks

    with no_autocast(call.linear):
        return _chunks.loss(row.kernels, call)


class _LinearPolicyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        call: PolicyCall,
        row: Backend,
    ) -> tuple[Tensor, Metrics]:
        from logpi.ops.linear_policy_loss import _chunks

        needs = ctx.needs_input_grad[:3]
        with no_autocast(call.linear):
            out, ctx.grads = _chunks.loss_and_gradients(row.kernels, call, needs)
        ctx.weight_grad = call.linear.weight_grad if needs[1] else None
        return out.loss, out.metrics

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: None) -> tuple[Tensor | None, ...]:
        checks.differentiated_once("linear_policy_loss")
        if ctx.grads is None:
            raise RuntimeError(
                "linear_policy_loss: a second backward needs gradients that the first has handed "
                "over; call the op again, or with backend='torch'"
            )
        grads, ctx.grads = ctx.grads, None  # without a holder here, autograd need not copy them
        if ctx.weight_grad is not None:
            _refuse_a_scale(ctx.weight_grad, grad_loss)
        _scale([grad for grad in grads if grad is not None], grad_loss)
        return (*grads, None, None)


def _scale(grads: list[Tensor], by: Tensor) -> None:
    """In place, by a scalar that is neither rounded to their dtype nor, on a GPU, read."""
    if not grads or (by.device.type == "cpu" and by.item() == 1):
        return
    # A kernel that returned at once for a scale of 1 would save reading and writing them all.
    found_inf = torch.zeros((), dtype=torch.float32, device=by.device)
    for dtype in {grad.dtype for grad in grads}:
        some = [grad for grad in grads if grad.dtype == dtype]
        torch._amp_foreach_non_finite_check_and_unscale_(some, found_inf, by.float())


def _refuse_a_scale(weight_grad: Tensor, by: Tensor) -> None:
    """The weight's gradient was added for an upstream gradient of 1."""
    if by.device.type != "cpu":
        weight_grad[:1].mul_(torch.where(by == 1, 1.0, torch.nan))
    elif by.item() != 1:
        raise RuntimeError(
            "linear_policy_loss: weight_grad has the gradient for an upstream gradient of 1, got "
            f"{by.item():g}; scale by num_tokens or num_sequences, or leave out weight_grad"
        )


def _check(
    hidden_states: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    objective: TokenObjective,
    aggregation: str,
    ref_log_probs: Tensor | None,
    kl: KL | None,
    entropy_coef: float,
    num_tokens: int | float | Tensor | None,
    num_sequences: int | float | Tensor | None,
    bias: Tensor | None,
    temperature: float | Tensor,
    support: slice | None,
    vocab_size: int | None,
    softcap: float | None,
    logit_scale: float,
    logits_dtype: torch.dtype | None,
    workspace_bytes: int | None,
    weight_grad: Tensor | None,
) -> PolicyCall:
    check_objective(objective)
    if not isinstance(objective, TokenObjective):
        raise ValueError(
            f"objective: expected a token-level one, got {type(objective).__name__}, whose "
            f"gradient at a token depends on {objective.depends_on}: it is not known when the "
            "token's logits are. Take the log-probs from linear_log_probs(.., retain_bytes=..), "
            "which keeps logits for the backward, and the loss from policy_loss"
        )
    if isinstance(support, KeepSet):
        raise ValueError(
            "support: expected None or a slice, got a KeepSet, whose ids are no one slice of the "
            "weight; take the log-probs from linear_log_probs(.., support=..), and the loss from "
            "them"
        )
    checks.dtype("hidden_states", hidden_states, *checks.FLOATS)
    if hidden_states.dim() != 3:
        raise ValueError(
            f"hidden_states: expected shape [B, T, D], got {tuple(hidden_states.shape)}"
        )
    lead, device = hidden_states.shape[:-1], hidden_states.device
    checks.tensor("token_ids", token_ids)
    checks.shape("token_ids", token_ids, lead)
    checks.tensor("loss_mask", loss_mask)
    checks.shape("loss_mask", loss_mask, lead)
    checks.device("loss_mask", loss_mask, device)
    check_penalties(kl, ref_log_probs, entropy_coef)
    linear = check_linear_call(
        hidden_states, weight, token_ids, bias, temperature, support, vocab_size, loss_mask,
        softcap, logit_scale, (True, False, False, False, False), 0, workspace_bytes, logits_dtype,
        None, 0, weight_grad,
    )  # fmt: skip
    wide = torch.float64 if linear.dtype == torch.float64 else torch.float32
    mask = loss_mask.bool()

    def per_token(name: str, value: Tensor, shape: torch.Size) -> Tensor:
        checks.dtype(name, value, *checks.FLOATS)
        checks.shape(name, value, shape)
        checks.device(name, value, device)
        value = value.detach().to(wide)
        value = value if value.dim() == 2 else value[:, None].expand(lead)
        return value.where(mask, 0.0).reshape(-1)  # not times 0: NaN would stay

    one_a_sequence = isinstance(advantages, Tensor) and advantages.dim() == 1
    weights = token_weights(
        loss_mask, aggregation, num_tokens=num_tokens, num_sequences=num_sequences, dtype=wide
    )
    tokens = Tokens(
        per_token("old_log_probs", old_log_probs, lead),
        per_token("advantages", advantages, lead[:1] if one_a_sequence else lead),
        None if ref_log_probs is None else per_token("ref_log_probs", ref_log_probs, lead),
        weights.reshape(-1),
        mask.reshape(-1),
    )
    return PolicyCall(linear, Formula(objective, kl, float(entropy_coef)), tokens)
