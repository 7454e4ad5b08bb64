"""FlowRL's loss: a flow balanced against a reward-tilted reference; and its log-partition head."""

from logpi.ops.flow_balance.log_partition import LogPartition
from logpi.ops.flow_balance.op import BACKENDS, FlowBalanceLoss, flow_balance_loss

__all__ = ["BACKENDS", "FlowBalanceLoss", "LogPartition", "flow_balance_loss"]
