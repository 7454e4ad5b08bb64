"""A batch spread over ranks and micro-batches gives the bits of one process, however it is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ranks
from covariance_problems import cut, problem
from logpi import BackendError, CovarianceSelection, clip_cov_mask, covariances, kl_cov_mask

SIZE = 2500
CLIP: dict[str, Any] = {"fraction": 0.02, "lower": 0.0, "seed": 5, "step": 9}
TIES: dict[str, Any] = {"fraction": 0.9, "lower": -9.0, "upper": 9.0}
# What each rank holds, micro-batch by micro-batch: uneven, empty, one token.
CUTS = {
    "1 rank": ((SIZE,),),
    "2 ranks": ((1, 700), (1024, 0, 775)),
    "4 ranks": ((0,), (1,), (1030, 200), (1269,)),
}


def select(tensors: Any, options: dict[str, Any]) -> dict[str, Tensor]:
    """Every result of one process, or of a rank's own part."""
    log_probs, advantages, mask, exclude = tensors
    args = (log_probs, advantages, mask)
    return {
        "c": covariances(*args, **options),
        "clip": clip_cov_mask(*args, exclude=exclude, **CLIP, **options),
        "most": clip_cov_mask(*args, **TIES, **options),
        "kl": kl_cov_mask(*args, fraction=0.02, **options),
        "few": kl_cov_mask(*args, **options),
    }


def on_a_rank(rank: int, sizes: tuple[tuple[int, ...], ...], kind: str) -> dict[str, Tensor]:
    options = {"process_group": torch.distributed.group.WORLD, "backend": "cpu"}
    own = cut(problem(SIZE, kind), tuple(map(sum, sizes)))[rank]
    found = select(own, options)
    selection = CovarianceSelection(**options)
    for log_probs, advantages, mask, exclude in cut(own, sizes[rank]):
        selection.add(log_probs, advantages, mask, exclude=exclude)
    found["clip of parts"] = torch.cat(selection.clip_cov_masks(**CLIP))
    found["kl of parts"] = torch.cat(selection.kl_cov_masks(fraction=0.02))
    return found


def all_kinds(rank: int, sizes: tuple[tuple[int, ...], ...]) -> list[dict[str, Tensor]]:
    return [on_a_rank(rank, sizes, kind) for kind in KINDS]


KINDS = ("plain", "wide", "few values", "nan", "all masked")


@pytest.mark.parametrize("name", CUTS)
def test_ranks_give_what_one_process_gives(tmp_path: Path, name: str) -> None:
    sizes = CUTS[name]
    found = ranks.run(all_kinds, len(sizes), tmp_path, sizes)
    for at, kind in enumerate(KINDS):
        expected = select(problem(SIZE, kind), {"backend": "torch"})
        expected |= {f"{name} of parts": expected[name] for name in ("clip", "kl")}
        assert expected["kl"].any() == (kind != "all masked")
        for name, whole in expected.items():
            ours = torch.cat([of_rank[at][name] for of_rank in found])
            assert torch.equal(ours.nan_to_num(9), whole.nan_to_num(9)), (kind, name)


def count_collectives(rank: int) -> tuple[list[tuple[str, int]], str]:
    calls: list[tuple[str, int]] = []
    for name in ("all_gather", "all_reduce"):
        original = getattr(torch.distributed, name)

        def counted(*args: Any, original: Any = original, name: str = name, **kwargs: Any) -> Any:
            calls.append((name, args[-1].numel()))
            return original(*args, **kwargs)

        setattr(torch.distributed, name, counted)
    tensors, group = problem(5000, seed=rank)[:3], torch.distributed.group.WORLD
    kl_cov_mask(*tensors, process_group=group)
    with pytest.raises(BackendError) as caught:
        kl_cov_mask(*tensors, process_group=group, backend="torch")
    return calls, str(caught.value)


def test_sums_histograms_and_counts_travel_and_no_token(tmp_path: Path) -> None:
    """As much for 5000 tokens a rank as for any other number; the definition knows no ranks."""
    expected = [("all_gather", 69), *[("all_reduce", 2048)] * 3, ("all_gather", 1)]
    for calls, refusal in ranks.run(count_collectives, 2, tmp_path):
        assert calls == expected
        assert "takes no process_group" in refusal
