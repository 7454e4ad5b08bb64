"""The definition of linear_log_probs in plain torch: all logits, then token_log_probs."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from logpi.ops.linear_log_probs.op import LinearCall
from logpi.ops.token_log_probs import TokenLogProbs, reference


def linear_log_probs(call: LinearCall) -> TokenLogProbs:
    """Differentiable any number of times; `[N, V]` in memory several times over."""
    head, dtype = call.head, call.dtype
    hidden, weight, bias = (
        None if t is None else t.to(dtype) for t in (call.hidden_states, call.weight, call.bias)
    )
    assert hidden is not None and weight is not None  # noqa: PT018
    if head.loss_mask is not None:  # not times 0: NaN would stay
        hidden = hidden.where(head.loss_mask[:, None], 0.0)
    with torch.autocast(hidden.device.type, enabled=False):
        logits = F.linear(hidden, weight, bias)
    return reference.token_log_probs(head._replace(logits=logits.view(head.logits.shape)))
