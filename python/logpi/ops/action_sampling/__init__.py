"""Robot actions as tokens, and drawing them."""

from logpi.ops.action_sampling.codec import ActionCodec
from logpi.ops.action_sampling.op import BACKENDS, ActionSample, sample_action_tokens

__all__ = ["BACKENDS", "ActionCodec", "ActionSample", "sample_action_tokens"]
