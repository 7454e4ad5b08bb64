"""logpi: the loss head of RL post-training. Importing it imports torch and nothing heavier."""

from logpi import advantages, diagnostics, objectives
from logpi.core.backends import BackendError
from logpi.core.metrics import Metrics
from logpi.core.support import KeepSet
from logpi.ops.action_sampling import ActionCodec, ActionSample, sample_action_tokens
from logpi.ops.action_sampling.episodes import episode_mask
from logpi.ops.action_sampling.log_probs import action_log_probs
from logpi.ops.covariance_clip import (
    CovarianceSelection,
    clip_cov_mask,
    covariances,
    kl_cov_mask,
)
from logpi.ops.flow_balance import FlowBalanceLoss, LogPartition, flow_balance_loss
from logpi.ops.linear_log_probs import linear_log_probs
from logpi.ops.linear_policy_loss import linear_policy_loss
from logpi.ops.policy_loss import PolicyLoss, policy_loss
from logpi.ops.policy_loss.value import value_loss
from logpi.ops.token_log_probs import TokenLogProbs, token_log_probs
from logpi.ops.token_sampling import TokenSample, sample_tokens

__version__ = "0.1.0"
__all__ = [
    "ActionCodec",
    "ActionSample",
    "BackendError",
    "CovarianceSelection",
    "FlowBalanceLoss",
    "KeepSet",
    "LogPartition",
    "Metrics",
    "PolicyLoss",
    "TokenLogProbs",
    "TokenSample",
    "action_log_probs",
    "advantages",
    "clip_cov_mask",
    "covariances",
    "diagnostics",
    "episode_mask",
    "flow_balance_loss",
    "kl_cov_mask",
    "linear_log_probs",
    "linear_policy_loss",
    "objectives",
    "policy_loss",
    "sample_action_tokens",
    "sample_tokens",
    "token_log_probs",
    "value_loss",
]
