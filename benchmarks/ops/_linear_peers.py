"""What others run from hidden states and the head: (hidden, weight, ids) -> (log p, H or None).

`liger_grpo` and `policy_loss` form a loss instead: they take d loss / d log p, the slope, as well.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops import _peers as over_logits

Pair = tuple[Tensor, Tensor | None]
TRL_WIDTH = 32768  # columns a tile, as TRL calls it
SEQUENCE = 2048  # tokens at most, of a sequence in a loss


def full_logits(hidden: Tensor, weight: Tensor, ids: Tensor) -> Pair:
    return over_logits.log_softmax_form(F.linear(hidden, weight), ids)


def full_cross_entropy(hidden: Tensor, weight: Tensor, ids: Tensor) -> Pair:
    return over_logits.cross_entropy(F.linear(hidden, weight), ids)


def trl_chunked(hidden: Tensor, weight: Tensor, ids: Tensor) -> Pair:
    from trl.kernels import ChunkedLogProbFunction

    width = min(TRL_WIDTH, len(weight))
    return ChunkedLogProbFunction.apply(  # type: ignore[no-any-return,no-untyped-call]
        hidden, weight, None, ids, 1.0, width, None, 1.0, ("entropy",)
    )[:2]


def torch_chunked(hidden: Tensor, weight: Tensor, ids: Tensor) -> Pair:
    # without options it is full_cross_entropy
    choose = torch.nn.LinearCrossEntropyOptions
    if hidden.is_cuda:
        options = choose()
    else:  # its own choice, 4 rows a chunk and slow 16-bit products, takes 40 times longer
        policy = "auto" if hidden.dtype == torch.float32 else "accurate"
        options = choose(batch_chunk_size=256, chunking_method=None, acc_policy=policy)
    return -F.linear_cross_entropy(hidden, weight, ids, reduction="none", options=options), None


def cce_compiled(hidden: Tensor, weight: Tensor, ids: Tensor) -> Pair:
    return _cce(hidden, weight, ids, "torch_compile")


def cce(hidden: Tensor, weight: Tensor, ids: Tensor) -> Pair:
    return _cce(hidden, weight, ids, "cce")


def _cce(hidden: Tensor, weight: Tensor, ids: Tensor, how: str) -> Pair:
    from cut_cross_entropy import linear_cross_entropy

    return -linear_cross_entropy(hidden, weight, ids, reduction="none", impl=how), None


def liger_grpo(hidden: Tensor, weight: Tensor, ids: Tensor, slope: Tensor) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    rows = len(ids)
    batch = rows // SEQUENCE if rows % SEQUENCE == 0 else 1
    # the ratio is 1 and the loss -sum(ratio * advantage) / rows; [B, T] is too little to compile
    loss = LigerFusedLinearGRPOLoss(beta=0.0, compiled=False, use_ref_model=False)
    states, tokens = hidden.view(batch, -1, hidden.shape[-1]), ids.view(batch, -1)
    advantages = slope.view(batch, -1)[:, 0] * -rows
    return loss(states, weight, tokens, torch.ones_like(tokens), advantages)[0]  # type: ignore[no-any-return]


def policy_loss(
    hidden: Tensor, weight: Tensor, ids: Tensor, slope: Tensor, log_probs: Tensor
) -> Tensor:
    """Ours, the head of 3 products: one sequence, a loss that has this slope. Of the objectives the
    one without a ratio, which rounding could push over a clip."""
    from logpi import linear_policy_loss
    from logpi.objectives import Reinforce

    mask, advantages = torch.ones_like(ids, dtype=torch.bool)[None], (slope * -len(ids))[None]
    return linear_policy_loss(
        hidden[None], weight, ids[None], log_probs[None], advantages, mask, objective=Reinforce()
    ).loss
