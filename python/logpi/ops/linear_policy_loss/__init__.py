"""Hidden states in, loss and metrics out, and the gradients with them, in 3 products."""

from logpi.ops.linear_policy_loss.op import BACKENDS, linear_policy_loss

__all__ = ["BACKENDS", "linear_policy_loss"]
