"""Log-probs, advantages and a mask in; the loss of a policy update and its metrics out."""

from logpi.ops.policy_loss.loss import PolicyLoss
from logpi.ops.policy_loss.op import BACKENDS, policy_loss

__all__ = ["BACKENDS", "PolicyLoss", "policy_loss"]
