"""Draws from a whole vocabulary, truncated, with the log-probs that training needs."""

from logpi.ops.token_sampling.op import BACKENDS, TokenSample, sample_tokens

__all__ = ["BACKENDS", "TokenSample", "sample_tokens"]
