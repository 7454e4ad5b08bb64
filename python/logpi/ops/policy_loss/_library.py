"""policy_loss as a torch.library op: what torch.compile sees. Eager calls do not come here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logpi.ops.policy_loss.encoding import METRICS
from logpi.ops.policy_loss.op import BACKENDS, Encoded

_LIBRARY: Any = torch.library.Library("logpi", "FRAGMENT")  # type: ignore[no-untyped-call]
# Loss, metrics, and both gradients (empty where not asked for).
_LIBRARY.define(
    "policy_loss(str row, Tensor log_probs, Tensor? entropy, Tensor old_log_probs, "
    "Tensor advantages, Tensor loss_mask, Tensor weights, Tensor? ref_log_probs, "
    "Tensor? importance, Tensor? selection, int kind, float a, float b, float c, int estimator, "
    "float kl_coef, float entropy_coef, bool with_log_probs, bool with_entropy) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_ARGUMENTS = 1 + len(Encoded._fields) + 2
_ROWS = {row.name: row for row in BACKENDS}


def policy_loss(
    row: str, call: Encoded, with_log_probs: bool, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    """Loss and metrics."""
    out = torch.ops.logpi.policy_loss(row, *call, with_log_probs, with_entropy)
    return out[0], out[1]


def _forward(row: str, *args: Any) -> tuple[Tensor, ...]:
    call, wants = Encoded(*args[:-2]), args[-2:]
    out = _ROWS[row].kernels.forward(call, *wants)
    return tuple(call.log_probs.new_empty(0) if field is None else field for field in out)


def _fake(_row: str, log_probs: Tensor, *args: Any) -> tuple[Tensor, ...]:
    new = log_probs.new_empty
    grads = (torch.empty_like(log_probs) if want else new(0) for want in args[-2:])
    return new(()), new(METRICS), *grads


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.wants = inputs[-2:]
    ctx.save_for_backward(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])


def _autograd(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    nothing = (None,) * (_ARGUMENTS - 3)
    if grad_loss is None:
        return None, None, None, *nothing
    grads = zip(ctx.saved_tensors, ctx.wants, strict=True)
    return None, *(grad * grad_loss if want else None for grad, want in grads), *nothing


for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("policy_loss", _forward, _key)
torch.library.register_fake("logpi::policy_loss", _fake, lib=_LIBRARY)
torch.library.register_autograd(
    "logpi::policy_loss", _autograd, setup_context=_setup_context, lib=_LIBRARY
)
