"""Generalised advantage estimation."""

from logpi.ops.gae.op import BACKENDS, Gae, gae

__all__ = ["BACKENDS", "Gae", "gae"]
