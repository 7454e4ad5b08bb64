"""SupportProcessor under both of vLLM's interfaces: its loaders, its batches, its requests.

The classes are vLLM's own, and need no GPU; tests/vllm-requirements.txt says what to install. The
batches are ours, random ones that follow the rules of vLLM's persistent batch.
"""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from logpi.integrations.vllm import SUPPORT_ARG, keep_set, support_args

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.usefixtures("vllm"),
    pytest.mark.filterwarnings("ignore"),
]
NAME = "logpi.integrations.vllm:SupportProcessor"
V, SLOTS = 40, 8
SUPPORTS = [None, None, (8, 24), (8, 24), (0, 1), (30, 40)]


def params(support: tuple[int, int] | None) -> Any:
    from vllm import SamplingParams

    return SamplingParams(extra_args=support_args(slice(*support)) if support else None)


def check(logits: torch.Tensor, noise: torch.Tensor, expected: list[Any]) -> None:
    for row, before, support in zip(logits, noise, expected, strict=True):
        start, stop = support or (0, V)
        truth = torch.full((V,), -torch.inf)
        truth[start:stop] = before[start:stop]
        assert torch.equal(row, truth), support


def v1() -> Any:
    from vllm.v1.sample.logits_processor import build_logitsprocs

    config = SimpleNamespace(
        speculative_config=None, scheduler_config=SimpleNamespace(max_num_seqs=SLOTS)
    )
    with pytest.MonkeyPatch.context() as patch:  # vLLM's own processors ask for pinned memory
        patch.setattr("vllm.utils.torch_utils.PIN_MEMORY", False)
        built = build_logitsprocs(config, torch.device("cpu"), False, False, [NAME])
    (ours,) = (p for p in built.all if type(p).__name__ == "SupportProcessor")
    assert ours in list(built.non_argmax_invariant)  # greedy requests pass it, too
    return ours


@pytest.mark.parametrize("seed", range(4))
def test_the_persistent_batch_of_v1(seed: int) -> None:
    """Adds into the lowest hole or at the end, the last condensed into holes, swaps."""
    from vllm.v1.sample.logits_processor import BatchUpdateBuilder, MoveDirectionality

    draw, ours, builder = random.Random(seed), v1(), BatchUpdateBuilder()
    batch: list[Any] = []  # the support of each request
    mixed = 0
    for _ in range(150):
        gone = sorted(draw.sample(range(len(batch)), draw.randint(0, min(2, len(batch)))))
        for slot in gone:
            builder.removed_append(slot)
        for _ in range(draw.randint(0, 2)):
            hole = builder.pop_removed()
            slot = len(batch) if hole is None else hole
            if slot == SLOTS:
                break
            support = draw.choice(SUPPORTS)
            builder.added.append((slot, params(support), None, []))
            batch[slot : slot + 1] = [support]
            gone = [g for g in gone if g != slot]
        while gone:  # condense
            if gone[-1] == len(batch) - 1:
                batch.pop()
                gone.pop()
                continue
            hole, last = builder.pop_removed(), len(batch) - 1
            builder.moved.append((last, hole, MoveDirectionality.UNIDIRECTIONAL))
            batch[hole] = batch.pop()
            gone.remove(hole)
        if len(batch) > 1 and draw.random() < 0.5:
            i, j = draw.sample(range(len(batch)), 2)
            builder.moved.append((i, j, MoveDirectionality.SWAP))
            batch[i], batch[j] = batch[j], batch[i]
        ours.update_state(builder.get_and_reset(len(batch)))
        builder.reset()
        noise = torch.randn(len(batch), V)
        check(ours.apply(noise.clone()), noise, batch)
        mixed += len(set(batch)) > 1
    assert mixed > 50


def v2() -> Any:
    from vllm.v1.worker.gpu.sample.logits_processor import build_custom_logits_processors

    names = ("all_token_ids", "prompt_len", "prefill_len", "total_len")
    states = SimpleNamespace(
        device=torch.device("cpu"), max_num_reqs=SLOTS, vocab_size=V, **dict.fromkeys(names)
    )
    (ours,) = build_custom_logits_processors(SimpleNamespace(), states, False, [NAME])
    return ours


@pytest.mark.parametrize("rows_per_request", [1, 4], ids=["plain", "speculative"])
def test_the_slots_of_v2(rows_per_request: int) -> None:
    """Slots are recycled and never said to be free; a request has a row for each draft token."""
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext

    draw, ours = random.Random(0), v2()
    live: dict[int, Any] = {}
    mixed = 0
    for _ in range(150):
        for slot in draw.sample(list(live), draw.randint(0, min(2, len(live)))):
            del live[slot]
        free = [slot for slot in range(SLOTS) if slot not in live]
        for slot in draw.sample(free, draw.randint(0, min(2, len(free)))):
            live[slot] = draw.choice(SUPPORTS)
            assert ours.add_request(slot, params(live[slot])) is (live[slot] is not None)
        ours.apply_staged_writes()
        slots = draw.sample(list(live), len(live))  # in another order each step
        counts = [draw.randint(1, rows_per_request) for _ in slots]
        mapping = torch.tensor(slots, dtype=torch.int32)
        expanded = mapping.repeat_interleave(torch.tensor(counts, dtype=torch.int64))
        nothing = torch.zeros(len(expanded), dtype=torch.int32)
        context = LogitsContext(
            expanded_idx_mapping=expanded,
            idx_mapping=mapping,
            idx_mapping_np=mapping.numpy(),
            expanded_local_pos=nothing,
            input_ids=nothing,
            pos=nothing,
            seq_lens_upper_bound_np=nothing.numpy(),
        )
        noise = torch.randn(len(expanded), V)
        check(ours.apply(noise.clone(), context), noise, [live[s] for s in expanded.tolist()])
        mixed += len({live[slot] for slot in slots}) > 1
    assert mixed > 50


def test_bad_requests_are_refused_where_they_are_admitted() -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.sample.logits_processor import validate_logits_processors_parameters
    from vllm.v1.worker.gpu.sample.logits_processor import (
        build_custom_logits_processors_params_validator,
    )

    bad = SamplingParams(extra_args={SUPPORT_ARG: [24, 8]})
    of_v2 = build_custom_logits_processors_params_validator([NAME])
    for validate in (lambda p: validate_logits_processors_parameters([NAME], p), of_v2):
        validate(params((8, 24)))
        validate(params(None))
        with pytest.raises(VLLMValidationError, match=r"logpi_support: expected 0 <= start < stop"):
            validate(bad)


def test_sampling_masks_are_those_of_vllm() -> None:
    import numpy as np
    from vllm.outputs import CompletionOutput, SamplingMask
    from vllm.v1.outputs import SamplingMaskLists

    lists = SamplingMaskLists(np.array([3, 4, 0, 1, 2, 7], np.int32), np.array([0, 2, 5, 6]))
    two, one = lists.slice_request(0, 2), lists.slice_request(2, 1)
    done = CompletionOutput(
        index=0,
        text="",
        token_ids=[3, 1],
        cumulative_logprob=None,
        logprobs=None,
        sampling_mask=SamplingMask(two.to_nested_list()),
    )
    for sampled in ([done, one], [two, one]):
        found = keep_set(sampled)
        assert found.indptr.tolist() == [0, 2, 5, 6]
        assert found.indices.tolist() == [3, 4, 0, 1, 2, 7]


def test_it_is_named_and_never_registered() -> None:
    """An entry point would load it into every engine, and break those of the other interface."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert "vllm.logits_processors" not in project.read_text()
