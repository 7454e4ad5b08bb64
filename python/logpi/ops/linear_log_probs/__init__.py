"""log p(token) and entropy from hidden states and the head's weight, without the logits."""

from logpi.ops.linear_log_probs.op import BACKENDS, linear_log_probs

__all__ = ["BACKENDS", "linear_log_probs"]
