"""The selection over all micro-batches of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from logpi.core.backends import AUTO
from logpi.ops.covariance_clip.op import COVARIANCES, Call, check_call, clip_cov_mask, kl_cov_mask


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
        self._parts: list[Call] = []

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
        self._parts.append(call)

    def clip_cov_masks(self, **options: Any) -> list[Tensor]:
        """A mask a micro-batch, shaped as it is; options as of `clip_cov_mask`."""
        if any(part.exclude is not None for part in self._parts):
            options["exclude"] = self._whole(
                torch.zeros_like(part.loss_mask) if part.exclude is None else part.exclude
                for part in self._parts
            )
        return self._masks(clip_cov_mask, options)

    def kl_cov_masks(self, **options: Any) -> list[Tensor]:
        """A mask a micro-batch, shaped as it is; options as of `kl_cov_mask`."""
        return self._masks(kl_cov_mask, options)

    def _masks(self, op: Callable[..., Tensor], options: dict[str, Any]) -> list[Tensor]:
        if not self._parts:
            raise ValueError("CovarianceSelection: expected at least one add(..), got none")
        log_probs, advantages, loss_masks, *_ = zip(*self._parts, strict=True)
        inputs = map(self._whole, (log_probs, advantages, loss_masks))
        mask = op(*inputs, **options, **self._options)
        sizes = [part.loss_mask.numel() for part in self._parts]
        parts = torch.split(mask, sizes)
        return [one.view_as(part.loss_mask) for one, part in zip(parts, self._parts, strict=True)]

    @staticmethod
    def _whole(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat([tensor.flatten() for tensor in tensors])
