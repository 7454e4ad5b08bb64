"""Advantages, vectorised over groups and tokens: `from logpi import advantages`."""

from logpi.ops.gae import Gae, gae

__all__ = ["Gae", "gae"]
