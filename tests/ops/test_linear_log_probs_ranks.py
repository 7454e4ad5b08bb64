"""A vocabulary spread over ranks gives what one process gives: outputs, dX, every shard of dW."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ranks
from logpi import BackendError, KeepSet, linear_log_probs
from logpi.testing import assert_within_budget

ALL = {f"return_{name}": True for name in ("entropy", "collision", "lse", "top1", "mean_logit")}
N, V, D, K = 32, 97, 16, 2


def problem() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*s, generator=generator) for s in ((N, D), (V, D), (V,)))
    weight[60] = weight[3]  # equals on two ranks: the lowest id is the top
    hidden[0] = 8 * weight[3]
    bias[60] = bias[3]
    ids = torch.randint(5, 60, (N, K), generator=generator)
    ids[0] = torch.tensor([3, 60]) + 2  # in every support
    g, h = torch.randn(N, K, generator=generator), torch.randn(N, generator=generator)
    return {"hidden": hidden, "weight": weight, "bias": bias, "ids": ids, "g": g, "h": h}


def option_sets() -> dict[str, dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    kept = torch.rand(N, V, generator=generator) < 0.3
    kept[torch.arange(N)[:, None], problem()["ids"]] = True
    mask = torch.arange(N) % 4 != 1
    return {
        "plain": {},
        "retained": {"retain_bytes": 1 << 20},
        "masked slice": {"support": slice(5, 63), "loss_mask": mask},
        "softcap": {"softcap": 3.0, "temperature": 0.5 + torch.rand(N, generator=generator)},
        "kept": {"support": KeepSet.from_mask(kept), "loss_mask": mask},
    }


def compute(p: dict[str, Tensor], first: int, last: int, **options: Any) -> dict[str, Tensor]:
    """Outputs and gradients with rows [first, last) of the weight."""
    leaves = [p["hidden"], p["weight"][first:last], p["bias"][first:last]]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    out = linear_log_probs(
        leaves[0], leaves[1], p["ids"], bias=leaves[2], vocab_size=V, **ALL, **options
    )
    upstream = [u.to(out.log_probs) for u in (p["g"], p["h"])]
    grads = torch.autograd.grad(out[:2], leaves, upstream)
    result = dict(zip(("hidden", "weight", "bias"), grads, strict=True)) | out._asdict()
    return {name: value.detach() for name, value in result.items()}


def on_a_rank(rank: int, bounds: list[int]) -> dict[str, dict[str, Tensor]]:
    group = torch.distributed.group.WORLD
    first, last = bounds[rank], bounds[rank + 1]
    shard = {"process_group": group, "vocab_start": first, "backend": "cpu"}
    return {
        name: compute(problem(), first, last, **shard, **options)
        for name, options in option_sets().items()
    }


# A rank with one row, ranks without a row inside the support, uneven ones.
@pytest.mark.parametrize("bounds", [[0, 40, V], [0, 1, 2, 90, V]], ids=["2 ranks", "4 ranks"])
def test_ranks_give_what_one_process_gives(tmp_path: Path, bounds: list[int]) -> None:
    found = ranks.run(on_a_rank, len(bounds) - 1, tmp_path, bounds)
    wide = {k: v if k == "ids" else v.double() for k, v in problem().items()}
    for name, options in option_sets().items():
        yardstick = compute(problem(), 0, V, backend="torch", **options)
        truth = compute(wide, 0, V, backend="torch", **options)
        for rank, first in enumerate(bounds[:-1]):
            for field, ours in found[rank][name].items():
                shard = field in ("weight", "bias")
                part = slice(first, bounds[rank + 1]) if shard else slice(None)
                one, other = yardstick[field], truth[field]
                if ours.dtype == torch.bool:
                    assert torch.equal(ours, one), (name, rank, field)
                elif shard:  # the yardstick's worst element may be another rank's
                    whole = one.clone()
                    whole[part] = ours
                    assert_within_budget(whole, one, other, name=f"{name}: {field} of rank {rank}")
                else:
                    assert_within_budget(ours, one, other, name=f"{name}: {field} on rank {rank}")


def test_every_rank_returns_the_same_bits(tmp_path: Path) -> None:
    found = ranks.run(on_a_rank, 2, tmp_path, [0, 50, V])
    for name in option_sets():
        for field in ("log_probs", "entropy", "collision", "lse", "mean_logit", "top1", "hidden"):
            assert torch.equal(found[0][name][field], found[1][name][field]), (name, field)


def count_collectives(rank: int) -> list[str]:
    calls: list[str] = []
    for name in ("all_gather", "all_reduce"):
        original = getattr(torch.distributed, name)

        def counted(*args: Any, original: Any = original, name: str = name, **kwargs: Any) -> Any:
            calls.append(name)
            return original(*args, **kwargs)

        setattr(torch.distributed, name, counted)
    group = torch.distributed.group.WORLD
    compute(problem(), 50 * rank, 50 + 47 * rank, process_group=group, vocab_start=50 * rank)
    return calls


def test_one_collective_each_way(tmp_path: Path) -> None:
    assert ranks.run(count_collectives, 2, tmp_path) == [["all_gather", "all_reduce"]] * 2


def refused(_rank: int) -> str:
    p, group = problem(), torch.distributed.group.WORLD
    with pytest.raises(BackendError) as caught:
        linear_log_probs(p["hidden"], p["weight"], p["ids"], process_group=group, backend="torch")
    return str(caught.value)


def test_the_definition_knows_no_ranks(tmp_path: Path) -> None:
    assert "takes no process_group" in ranks.run(refused, 1, tmp_path)[0]
