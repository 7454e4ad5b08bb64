"""log p(token) and entropy from logits."""

from logpi.ops.token_log_probs.op import BACKENDS, TokenLogProbs, token_log_probs

__all__ = ["BACKENDS", "TokenLogProbs", "token_log_probs"]
