"""What others run for log p(token) and entropy, each as (logits, ids) -> (log p, H or None)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[Tensor, Tensor | None]


def log_softmax_form(logits: Tensor, ids: Tensor) -> Pair:
    log_p = torch.log_softmax(logits.float(), -1)
    return _pick(log_p, ids), -(log_p.exp() * log_p).sum(-1)


def shifted_form(logits: Tensor, ids: Tensor) -> Pair:
    x = logits.float()
    shifted = x - x.amax(-1, keepdim=True).detach()
    exp = shifted.exp()
    total = exp.sum(-1)
    return _pick(shifted, ids) - total.log(), total.log() - (exp * shifted).sum(-1) / total


def logsumexp_form(logits: Tensor, ids: Tensor) -> Pair:
    x = logits.float()
    return _pick(x, ids) - x.logsumexp(-1), None


def cross_entropy(logits: Tensor, ids: Tensor) -> Pair:
    # at the logits' own dtype, as it is called: its error in bfloat16 stands beside its time
    return -F.cross_entropy(logits, ids, reduction="none"), None


def trl_both(logits: Tensor, ids: Tensor) -> Pair:
    from trl.trainer.utils import selective_log_softmax_and_entropy

    return selective_log_softmax_and_entropy(*_sequences(logits, ids))


def trl_separate(logits: Tensor, ids: Tensor) -> Pair:
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    logits, ids = _sequences(logits, ids)
    return selective_log_softmax(logits, ids), entropy_from_logits(logits)


def trl_kernel(logits: Tensor, ids: Tensor) -> Pair:
    # what trl_both comes to on a GPU, with less to import
    from trl.kernels.logprob_entropy import selective_log_softmax_and_entropy

    return selective_log_softmax_and_entropy(logits, ids)


def liger(logits: Tensor, ids: Tensor) -> Pair:
    from liger_kernel.transformers.functional import liger_cross_entropy

    return -liger_cross_entropy(logits, ids, reduction="none"), None


def quack(logits: Tensor, ids: Tensor) -> Pair:
    from quack.cross_entropy import cross_entropy as quack_cross_entropy

    return -quack_cross_entropy(logits, ids, reduction="none"), None


def flash_attn(logits: Tensor, ids: Tensor) -> Pair:
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

    return -cross_entropy_loss(logits, ids)[0], None


def closed_forward(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(log p, H, logsumexp): what the closed gradient needs is kept, nothing else."""
    x = logits.float()
    top = x.amax(-1, keepdim=True)
    shifted = x - top
    exp = shifted.exp()
    total = exp.sum(-1)
    entropy = total.log() - (exp * shifted).sum(-1) / total
    return _pick(shifted, ids) - total.log(), entropy, top.squeeze(-1) + total.log()


def closed_backward(
    logits: Tensor,
    ids: Tensor,
    entropy: Tensor,
    lse: Tensor,
    grad_log_probs: Tensor,
    grad_entropy: Tensor,
    out: Tensor,
) -> None:
    """The gradient by hand and into `out`: what a careful user of torch.compile would write."""
    log_p = logits.float() - lse[:, None]
    slope = grad_log_probs[:, None] + grad_entropy[:, None] * (log_p + entropy[:, None])
    hit = torch.arange(logits.shape[-1], device=logits.device) == ids[:, None]
    out.copy_(torch.where(hit, grad_log_probs[:, None], 0.0) - log_p.exp() * slope)


def _pick(values: Tensor, ids: Tensor) -> Tensor:
    return values.gather(-1, ids[:, None]).squeeze(-1)


def _sequences(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """[B, T, V] as TRL has it: off a GPU it loops over B."""
    batch = 8 if len(ids) % 8 == 0 else 1
    return logits.view(batch, -1, logits.shape[-1]), ids.view(batch, -1)
