"""What stands behind the processor for vLLM, and its masks as KeepSets; no vLLM is needed."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from logpi import ActionCodec, KeepSet, linear_log_probs
from logpi.integrations import vllm as integration
from logpi.integrations.vllm import SUPPORT_ARG, Supports, code_of, keep_set, support_args

V = 50
UNIDIRECTIONAL, SWAP = SimpleNamespace(name="UNIDIRECTIONAL"), SimpleNamespace(name="SWAP")


def request(*support: int) -> Any:
    return SimpleNamespace(extra_args={SUPPORT_ARG: list(support)} if support else None)


def update(size: int, removed: Any = (), added: Any = (), moved: Any = ()) -> Any:
    added = [(slot, params, None, []) for slot, params in added]
    return SimpleNamespace(batch_size=size, removed=removed, added=added, moved=moved)


def kept(supports: Supports, rows: int, slots: Any, slot_of_row: Any = None) -> list[Any]:
    """For each row (start, stop) of what is left, () where all of it is."""
    noise = torch.randn(rows, V)
    logits = noise.clone()
    assert supports.apply(logits, slots, slot_of_row) is logits
    found = []
    for row, before in zip(logits, noise, strict=True):
        ids = row.isfinite().nonzero().flatten().tolist()
        assert ids == list(range(ids[0], ids[-1] + 1))
        assert torch.equal(row[ids], before[ids])  # what is left is what it was
        assert row.isneginf().sum() == V - len(ids)
        found.append(() if len(ids) == V else (ids[0], ids[-1] + 1))
    return found


def test_a_batch_through_its_updates() -> None:
    supports = Supports(6, "cpu")

    def step(size: int, **changes: Any) -> list[Any]:
        supports.update(update(size, **changes))
        supports.flush()
        return kept(supports, size, range(size))

    a, b, free = request(10, 20), request(30, 50), request()
    assert step(3, added=[(0, a), (1, free), (2, b)]) == [(10, 20), (), (30, 50)]
    assert step(3, moved=[(0, 2, SWAP)]) == [(30, 50), (), (10, 20)]
    # the middle one leaves, the last takes its place
    assert step(2, removed=[1], moved=[(2, 1, UNIDIRECTIONAL)]) == [(30, 50), (10, 20)]
    # where it came from, a free one comes in: nothing of it is left there
    assert step(3, added=[(2, free)]) == [(30, 50), (10, 20), ()]
    assert step(3, added=[(0, free), (1, free)]) == [(), (), ()]  # replaced
    # one that was added is moved at once
    assert step(4, added=[(3, a)], moved=[(3, 0, SWAP)]) == [(10, 20), (), (), ()]
    assert step(3, removed=[0, 3], moved=[]) == [(), (), ()]
    # one that takes another's place leaves its own empty
    assert step(2, added=[(0, a), (1, b)]) == [(10, 20), (30, 50)]
    assert step(2, moved=[(0, 1, UNIDIRECTIONAL)]) == [(), (10, 20)]


def test_rows_of_slots() -> None:
    """Rows in any order, several of a request, slots that come again."""
    supports = Supports(5, "cpu")
    for slot, params in ((4, request(0, 5)), (1, request()), (2, request(7, 8))):
        supports.put(slot, code_of(params.extra_args))
    supports.flush()
    of_row = torch.tensor([2, 2, 4, 1, 1, 1, 4], dtype=torch.int32)
    expected = {2: (7, 8), 4: (0, 5), 1: ()}
    assert kept(supports, 7, [2, 4, 1], of_row) == [expected[slot] for slot in of_row.tolist()]
    of_row = torch.tensor([4, 4, 4], dtype=torch.int32)
    assert kept(supports, 3, [4], of_row) == [(0, 5)] * 3  # all alike: no mask
    supports.put(4, code_of(None))
    supports.put(1, code_of(request(49, 50).extra_args))
    supports.flush()
    of_row = torch.tensor([4, 1], dtype=torch.int32)
    assert kept(supports, 2, [4, 1], of_row) == [(), (49, 50)]


def test_a_table_is_staged_until_it_is_flushed() -> None:
    supports = Supports(2, "cpu")
    supports.put(0, code_of({SUPPORT_ARG: [3, 9]}))
    assert not supports._table.any()
    supports.flush()
    assert supports._table.tolist() == [3 << 32 | 9, 0]


def test_what_a_request_may_say() -> None:
    assert support_args(ActionCodec()) == {SUPPORT_ARG: [31744, 32000]}
    assert support_args(slice(0, 7)) == {SUPPORT_ARG: [0, 7]}
    assert code_of(None) == code_of({}) == code_of({"other": 1}) == 0
    assert code_of({SUPPORT_ARG: (0, 1)}) == 1
    for bad, message in (
        ([1], "expected two ints"),
        ("12", "expected two ints"),
        ([1, 2.0], "expected two ints"),
        ([True, 2], "expected two ints"),
        ([5, 5], "0 <= start < stop"),
        ([-1, 5], "0 <= start < stop"),
        ([0, 1 << 31], "0 <= start < stop"),
    ):
        with pytest.raises(ValueError, match=f"{SUPPORT_ARG}: .*{message}"):
            code_of({SUPPORT_ARG: bad})
    with pytest.raises(ValueError, match="support: expected two ints"):
        support_args(slice(None, 5))
    for bad_support in (slice(0, 8, 2), [1, 2]):
        with pytest.raises(TypeError, match="support: expected slice"):
            support_args(bad_support)  # type: ignore[arg-type]


def test_importing_it_needs_no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    integration._processor.cache_clear()
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setitem(sys.modules, "vllm.v1.sample.logits_processor", None)
    with pytest.raises(ModuleNotFoundError, match="vllm"):
        _ = integration.SupportProcessor
    with pytest.raises(AttributeError, match="has no attribute 'NoSuchProcessor'"):
        _ = integration.NoSuchProcessor


# ---- masks --------------------------------------------------------------------------------------


def completion(token_ids: list[int], masks: Any) -> Any:
    mask = None if masks is None else SimpleNamespace(token_ids=masks)
    return SimpleNamespace(token_ids=token_ids, sampling_mask=mask)


FIRST = completion([3, 1], [[3, 4], [0, 1, 2]])
SECOND = completion([7], [[7]])


@pytest.mark.parametrize("form", ["completion", "mask", "lists"])
def test_masks_in_a_batch_and_one_after_the_other(form: str) -> None:
    sampled: list[Any] = [FIRST, completion([], None), SECOND]
    if form != "completion":
        sampled = [one.sampling_mask or [] for one in sampled]
    if form == "lists":
        sampled = [getattr(one, "token_ids", one) for one in sampled]
    assert equal(keep_set(sampled), KeepSet.from_lists([[3, 4], [0, 1, 2], [7]]))
    batch = [[3, 4], [0, 1, 2], [], [], [], [], [7], [], []]
    assert equal(keep_set(sampled, length=3), KeepSet.from_lists(batch))
    assert equal(keep_set([]), KeepSet.from_lists([]))


def equal(one: KeepSet, other: KeepSet) -> bool:
    return torch.equal(one.indptr, other.indptr) and torch.equal(one.indices, other.indices)


def test_training_normalises_over_what_was_left() -> None:
    """Top-k sampling, replayed: the log-probs that the sampler itself had."""
    hidden, weight = torch.randn(2, 4, 8), torch.randn(V, 8)
    logits = (hidden @ weight.T).double()
    top = logits.topk(5, -1)
    ids = top.indices[..., 2]
    lengths = [4, 2]
    sampled = [
        completion(ids[b, :n].tolist(), top.indices[b, :n].tolist()) for b, n in enumerate(lengths)
    ]
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    support = keep_set(sampled, length=4)
    out = linear_log_probs(hidden, weight, ids, support=support, loss_mask=mask)
    expected = top.values.log_softmax(-1)[..., 2].where(mask, 0.0)
    torch.testing.assert_close(out.log_probs.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("sampled", "message"),
    [
        ([FIRST, completion([5], None)], r"sampled\[1\]: .*return_sampling_mask=True"),
        ([completion([5, 6], [[5]])], r"sampled\[0\]: expected a mask for each of its 2 .* got 1"),
        ([SECOND, completion([5] * 4, [[5]] * 4)], r"sampled\[1\]: expected at most 3 .* got 4"),
        ([SECOND, completion([1, 3], [[3, 4], [0, 1]])], r"token 1 outside of 2 in row 3"),
        ([completion([1], [[]])], r"token 1 outside of 0 in row 0"),
    ],
)
def test_masks_that_do_not_fit(sampled: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        keep_set(sampled, length=3)
