"""Which tokens a covariance rule touches."""

from logpi.ops.covariance_clip.op import BACKENDS, clip_cov_mask, covariances, kl_cov_mask
from logpi.ops.covariance_clip.selection import CovarianceSelection

__all__ = ["BACKENDS", "CovarianceSelection", "clip_cov_mask", "covariances", "kl_cov_mask"]
