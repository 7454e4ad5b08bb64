"""logpi: the loss head of RL post-training. Importing it imports torch and nothing heavier."""

from logpi import objectives
from logpi.core.backends import BackendError
from logpi.core.support import KeepSet
from logpi.ops.linear_log_probs import linear_log_probs
from logpi.ops.linear_policy_loss import linear_policy_loss
from logpi.ops.policy_loss import PolicyLoss, policy_loss
from logpi.ops.token_log_probs import TokenLogProbs, token_log_probs

__version__ = "0.1.0"
__all__ = [
    "BackendError",
    "KeepSet",
    "PolicyLoss",
    "TokenLogProbs",
    "linear_log_probs",
    "linear_policy_loss",
    "objectives",
    "policy_loss",
    "token_log_probs",
]
