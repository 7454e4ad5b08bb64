"""What the kernels of every row share: their workspace, and the order of their phases. Between them
ranks exchange sums, histograms and counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from logpi.core.vocab_parallel import gather, sum_over_ranks
from logpi.ops.covariance_clip.op import COVARIANCES, Call

# csrc/covariance_clip/covariance_clip.h has both
SUMS, KEYS, SECOND, THIRD, TIES_PHASE, MARK, END = range(7)
TILE = 1024
TOTALS = 69  # int64: two exact sums of 34, and the count
COUNT, FIRST, FIRST_TIE, TIES = 68, 69, 70, 71
SELECTED = 72  # 4 pairs
HISTOGRAMS = 80  # 3 of 2048 int32
_HEAD = HISTOGRAMS + 3 * 1024


class Work(NamedTuple):
    """A call's memory. The launch of SUMS fills the head with zeros."""

    memory: Tensor  # int64: the head, then the scratch
    head_words: int
    tiles: int
    out: Tensor  # [..]

    @property
    def head(self) -> Tensor:
        return self.memory[: self.head_words]

    @property
    def scratch(self) -> Tensor:
        """int32: two counts a tile, then a key a token; on a CPU its place too."""
        return self.memory[self.head_words :].view(torch.int32)


Run = Callable[[Call, Work, int, int], None]


def evaluate(run: Run, call: Call, keys_per_token: int = 1) -> Tensor:
    """The phases in their order; `run` does some of them, one after another."""
    work, size = _work(call, keys_per_token), call.log_probs.numel()
    end = SECOND if call.rule == COVARIANCES else END
    group = call.process_group
    if group is None:
        if size:
            run(call, work, SUMS, end)
        return work.out
    if not size:
        work.head.zero_()
    for phase in range(end):
        if size:
            run(call, work, phase, phase + 1)
        _exchange(work.head, phase, call.rule, group)
    return work.out


def _work(call: Call, keys_per_token: int) -> Work:
    x, selects = call.log_probs, call.rule != COVARIANCES
    size = x.numel()
    tiles = -(-size // TILE)
    head_words = _HEAD if selects else HISTOGRAMS
    keys = keys_per_token * size if selects else 0
    words = head_words + tiles + (keys + 1) // 2
    return Work(
        x.new_empty(words, dtype=torch.int64),
        head_words,
        tiles,
        torch.empty_like(call.loss_mask if selects else x),
    )


def _exchange(head: Tensor, phase: int, rule: int, group: Any) -> None:
    """What a phase has found here becomes what all ranks have found."""
    rank = torch.distributed.get_rank(group)
    if phase == SUMS:
        found = gather(head[:TOTALS], group)
        head[:TOTALS] = found.sum(0)
        head[FIRST] = found[:rank, COUNT].sum()
    elif KEYS <= phase <= THIRD and rule != COVARIANCES:
        sum_over_ranks(head[HISTOGRAMS:].view(torch.int32).view(3, -1)[phase - KEYS], group)
    elif phase == TIES_PHASE:
        head[FIRST_TIE] = gather(head[TIES : TIES + 1], group)[:rank].sum()
