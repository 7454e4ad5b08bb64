"""sample_tokens on a GPU: numbers, waits, graphs. Each body runs on a CPU too."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from logpi import TokenSample, sample_tokens, token_log_probs
from logpi.ops.token_sampling import BACKENDS
from logpi.testing import assert_within_budget, bits

if TYPE_CHECKING:
    from conftest import Place

N, V = 5, 9001  # three blocks of a row, the last one ragged
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "top_k": {"top_k": 50},
    "top_p": {"top_p": 0.9},
    "all": {"top_k": 400, "top_p": 0.9, "min_p": 0.01},
}


def logits(seed: int = 0) -> Tensor:
    return 3 * torch.randn(N, V, generator=torch.Generator().manual_seed(seed))


def sample(place: Place, z: Tensor, step: Any = 1, **options: Any) -> TokenSample:
    if place.row not in {row.name for row in BACKENDS}:
        pytest.skip(f"sample_tokens has no row {place.row}")
    options |= {"seed": 3, "step": step, "return_entropy": True, "return_keep": True}
    return sample_tokens(z, backend=place.row, **options)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers(place: Place, name: str, dtype: torch.dtype) -> None:
    z = place.holds(logits().to(dtype))
    ours = sample(place, z, temperature=1.3, **OPTIONS[name])
    truth = sample_tokens(
        z.double().cpu(), seed=3, step=1, temperature=1.3, return_entropy=True, return_keep=True,
        **OPTIONS[name],
    )  # fmt: skip
    assert torch.equal(ours.token_ids.cpu(), truth.token_ids)
    asked: dict[str, Any] = {"temperature": 1.3, "return_entropy": True}
    yardstick = token_log_probs(
        z.cpu(), truth.token_ids, support=truth.keep, backend="torch", **asked
    )
    found = [ours]
    if truth.keep is not None:
        assert ours.keep is not None
        count = len(truth.keep.indices)
        assert torch.equal(ours.keep.indptr.cpu(), truth.keep.indptr)
        assert torch.equal(ours.keep.indices[:count].cpu(), truth.keep.indices)
        found.append(token_log_probs(z, ours.token_ids, support=ours.keep, **asked))
    for one in found:  # as drawn, and as training asks again
        for field in ("log_probs", "entropy"):
            mine, theirs, true = (getattr(x, field) for x in (one, yardstick, truth))
            assert_within_budget(mine.cpu(), theirs, true, name=field)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_replayed_graph_draws_anew_and_nobody_waits(place: Place, name: str) -> None:
    z, step = place.holds(logits()), place.holds(torch.tensor(0))

    def run() -> list[Tensor]:
        out = sample(place, z, step, **OPTIONS[name])
        return [field for field in out[:3] if field is not None]

    run()  # compiles
    with place.without_sync():
        run()
    replay = place.recorded(run)
    for seed in (1, 2):
        z.copy_(place.holds(logits(seed)))
        step.fill_(seed)
        fresh = sample(place, place.holds(logits(seed)), seed, **OPTIONS[name])
        for x, y in zip(replay(), fresh[:3], strict=True):
            assert torch.equal(bits(x), bits(y))


def test_a_bad_row_harms_nobody(gpu_place: Place) -> None:
    z = gpu_place.holds(logits())
    clean = sample(gpu_place, z, top_p=0.9)
    z[2, 5] = math.nan
    with gpu_place.without_sync():
        ours = sample(gpu_place, z, top_p=0.9)
    assert ours.log_probs.isnan().tolist() == [n == 2 for n in range(N)]
    assert ours.token_ids[2] == 0
    assert torch.equal(ours.token_ids[3:], clean.token_ids[3:])
