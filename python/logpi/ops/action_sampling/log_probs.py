"""log p and entropy of action tokens, for training: the rows of the head that are actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from logpi.core import checks
from logpi.core.backends import AUTO
from logpi.ops.linear_log_probs import linear_log_probs
from logpi.ops.token_log_probs import TokenLogProbs

if TYPE_CHECKING:
    from logpi.ops.action_sampling.codec import ActionCodec


def action_log_probs(
    hidden_states: Tensor,  # [.., D]
    weight: Tensor,  # [V, D]
    token_ids: Tensor,  # [..]
    *,
    codec: ActionCodec,
    bias: Tensor | None = None,  # [V]
    temperature: float | Tensor = 1.0,
    loss_mask: Tensor | None = None,  # [..]
    softcap: float | None = None,
    logit_scale: float = 1.0,
    return_entropy: bool = False,
    return_collision: bool = False,
    return_lse: bool = False,
    return_top1: bool = False,
    return_mean_logit: bool = False,
    retain_bytes: int = 0,
    workspace_bytes: int | None = None,
    logits_dtype: torch.dtype | None = None,
    process_group: Any = None,
    vocab_start: int = 0,
    weight_grad: Tensor | None = None,  # [V, D]
    backend: str = AUTO,
) -> TokenLogProbs:
    """What a policy gives its action tokens, normalised over the codec's tokens alone.

        x = (hidden_states @ weight[codec.support].T + bias[codec.support]) / temperature
        log_probs = x[token] - logsumexp(x)          entropy = -sum p log p, over those tokens

    `linear_log_probs(support=codec.support)`: only the codec's rows of the head are multiplied,
    256 of OpenVLA's 32064.

    Args:
        hidden_states: `[.., D]` at the positions that predict an action token, after the model's
            last norm; any leading dims, such as `[B, chunk_size * action_dim, D]` of one forward.
            Gradient flows.
        weight: `[V, D]`, the whole head, V >= `codec.vocab_size`. Gradient flows; it is exactly 0
            outside the codec's rows, which are the only ones read.
        token_ids: `[..]` int64 (or int32), as sampled. One that is no action token has log-prob
            -inf.
        codec: whose tokens are the distribution.
        temperature: of the rollout. A policy sampled at 1.6 is trained at 1.6.
        loss_mask: False at tokens to leave out of every product, such as those after the end of an
            episode (`episode_mask`): outputs and gradients are exactly 0.
        bias, softcap, logit_scale, return_entropy, return_collision, return_lse, return_top1,
            return_mean_logit, retain_bytes, workspace_bytes, logits_dtype, process_group,
            vocab_start, weight_grad, backend: as in `linear_log_probs`.

    Returns:
        `TokenLogProbs` of `[..]`. Gradient flows through `log_probs` and `entropy`.

    Raises:
        ValueError, TypeError, BackendError: as `linear_log_probs`; a head with too few rows.

    Memory: that of `linear_log_probs` with a head of `codec.num_bins` rows; the gradient of
        `weight` is `[V, D]`.
    Source: docs/ops/action_log_probs.md.
    """
    checks.tensor("weight", weight)
    if process_group is None and weight.dim() == 2 and len(weight) < codec.vocab_size:
        raise ValueError(
            f"weight: expected at least {codec.vocab_size} rows, the codec's vocab_size, got "
            f"{len(weight)}"
        )
    return linear_log_probs(
        hidden_states,
        weight,
        token_ids,
        bias=bias,
        temperature=temperature,
        support=codec.support,
        vocab_size=codec.vocab_size,
        loss_mask=loss_mask,
        softcap=softcap,
        logit_scale=logit_scale,
        return_entropy=return_entropy,
        return_collision=return_collision,
        return_lse=return_lse,
        return_top1=return_top1,
        return_mean_logit=return_mean_logit,
        retain_bytes=retain_bytes,
        workspace_bytes=workspace_bytes,
        logits_dtype=logits_dtype,
        process_group=process_group,
        vocab_start=vocab_start,
        weight_grad=weight_grad,
        backend=backend,
    )
