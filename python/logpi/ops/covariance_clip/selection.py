"""The selection over all micro-batches of a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logpi.core.backends import AUTO
from logpi.ops.covariance_clip.op import COVARIANCES, check_call, clip_cov_mask, kl_cov_mask


class CovarianceSelection:
    """Collects the micro-batches of an update, then selects over all of them at once.

        selection = CovarianceSelection()
        for batch in micro_batches:  # a forward without gradients
            selection.add(batch.log_probs, batch.advantages, batch.loss_mask)
        masks = selection.clip_cov_masks(seed=seed, step=step)

    The masks are those of the micro-batches put together in their order. Kept are their tensors,
    9 bytes a token; nothing else is as long as the batch.

    Args:
        process_group, backend: as of `clip_cov_mask`. Ranks may hold unequal numbers of
            micro-batches, but each must select.
    """

    def __init__(self, *, process_group: Any = None, backend: str = AUTO) -> None:
        self._options = {"process_group": process_group, "backend": backend}
        self._shapes: list[torch.Size] = []
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []

    def add(
        self,
        log_probs: Tensor,  # [..]
        advantages: Tensor,  # [..]
        loss_mask: Tensor,  # [..]
        *,
        exclude: Tensor | None = None,  # [..]
    ) -> None:
        """One micro-batch; arguments as of `clip_cov_mask`."""
        call = check_call(COVARIANCES, log_probs, advantages, loss_mask, exclude)
        self._shapes.append(log_probs.shape)
        self._parts.append((call.log_probs, call.advantages, call.loss_mask, call.exclude))

    def clip_cov_masks(self, **options: Any) -> list[Tensor]:
        """A mask a micro-batch, shaped as it is; options as of `clip_cov_mask`."""
        *tensors, excludes = self._whole()
        if any(part is not None for part in excludes):
            full = [
                torch.zeros_like(mask) if part is None else part
                for part, (_, _, mask, _) in zip(excludes, self._parts, strict=True)
            ]
            options["exclude"] = torch.cat(full)
        return self._split(clip_cov_mask(*tensors, **options, **self._options))

    def kl_cov_masks(self, **options: Any) -> list[Tensor]:
        """A mask a micro-batch, shaped as it is; options as of `kl_cov_mask`."""
        *tensors, _ = self._whole()
        return self._split(kl_cov_mask(*tensors, **options, **self._options))

    def _whole(self) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor | None, ...]]:
        if not self._parts:
            raise ValueError("CovarianceSelection: expected at least one add(..), got none")
        log_probs, advantages, masks, excludes = zip(*self._parts, strict=True)
        return torch.cat(log_probs), torch.cat(advantages), torch.cat(masks), excludes

    def _split(self, mask: Tensor) -> list[Tensor]:
        parts = mask.split([shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]
