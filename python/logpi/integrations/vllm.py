"""vLLM: draw from a slice of the vocabulary, and train on what was drawn from.

`SupportProcessor` is a logits processor that keeps the requests which ask for it inside a slice,
such as a robot's action tokens. `keep_set` makes a `KeepSet` of the sampling masks that vLLM
reports, so that training normalises over what its top-k, top-p and min-p had left.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor

from logpi.core.support import KeepSet
from logpi.ops.action_sampling.codec import ActionCodec

SUPPORT_ARG = "logpi_support"  # of SamplingParams.extra_args: [start, stop]
_SHIFT = 32  # a support is one int64: start << 32 | stop; 0: the whole vocabulary
SupportProcessor: type  # made when it is first asked for, as it derives from vLLM's classes
__all__ = ["SUPPORT_ARG", "SupportProcessor", "keep_set", "support_args"]


def support_args(support: slice | ActionCodec) -> dict[str, Any]:
    """What a request says to be kept inside `support`.

        SamplingParams(temperature=1.6, max_tokens=7, extra_args=support_args(codec))

    Over HTTP the same dict is `vllm_xargs`. It says nothing to an engine without
    `logits_processors=["logpi.integrations.vllm:SupportProcessor"]`.

    Args:
        support: `slice(start, stop)` of token ids, or a codec, whose `support` it is.
    """
    if isinstance(support, ActionCodec):
        support = support.support
    if not isinstance(support, slice) or support.step not in (None, 1):
        raise TypeError(f"support: expected slice(start, stop) or an ActionCodec, got {support!r}")
    return {SUPPORT_ARG: list(_checked("support", (support.start, support.stop)))}


def keep_set(
    sampled: Iterable[Any],
    *,
    length: int | None = None,
    device: torch.device | str | None = None,
) -> KeepSet:
    """The `KeepSet` of sampled sequences, one row a token.

        outputs = llm.generate(prompts, params)          # LLM(.., return_sampling_mask=True)
        support = keep_set([output.outputs[0] for output in outputs], length=T)
        linear_log_probs(hidden_states, weight, token_ids, support=support, loss_mask=mask, ..)

    Args:
        sampled: for each sequence vLLM's `CompletionOutput`; or its `sampling_mask`, or the lists
            inside it, as its token-in-token-out server sends them: kept ids a token.
        length: T of the `[B, T]` batch; sequences begin at column 0 and rows behind their end are
            empty, for a `loss_mask` to leave out. None: sequences one after the other.
        device: of the result.

    Returns:
        `KeepSet` with `B * length` rows, or as many as there are tokens.

    Raises:
        ValueError: a sequence without a mask, with one of another length than its tokens, longer
            than `length`, or with a token that its mask does not keep; names the sequence.
    """
    counts: list[int] = []
    drawn: list[int] = []  # tokens, or -1 where they were not given
    flat: list[Sequence[int]] = []
    for at, one in enumerate(sampled):
        tokens, rows = _rows(f"sampled[{at}]", one)
        if length is not None and len(rows) > length:
            raise ValueError(f"sampled[{at}]: expected at most {length} tokens, got {len(rows)}")
        behind = 0 if length is None else length - len(rows)
        counts += [*map(len, rows), *[0] * behind]
        drawn += [*([-1] * len(rows) if tokens is None else tokens), *[-1] * behind]
        flat += rows
    ids = torch.tensor(list(chain.from_iterable(flat)), dtype=torch.int32)
    indptr = torch.tensor([0, *accumulate(counts)], dtype=torch.int64)
    _check_drawn(torch.tensor(drawn, dtype=torch.int64), indptr.diff(), ids)
    return KeepSet(indptr.to(device), ids.to(device))


def _rows(name: str, given: Any) -> tuple[Sequence[int] | None, Sequence[Sequence[int]]]:
    """The tokens of a sequence, if it says them, and the ids that were kept for each."""
    tokens, mask = None, given
    if hasattr(given, "sampling_mask"):  # CompletionOutput
        tokens, mask = given.token_ids, given.sampling_mask
        if mask is None and tokens:
            raise ValueError(
                f"{name}: expected a sampling_mask, got None; start vLLM with "
                "return_sampling_mask=True and logprobs_mode='processed_logprobs'"
            )
    if hasattr(mask, "to_nested_list"):  # SamplingMaskLists, inside the engine
        mask = mask.to_nested_list()
    rows: Sequence[Sequence[int]] = getattr(mask, "token_ids", mask) or []  # SamplingMask
    if tokens is not None and len(rows) != len(tokens):
        raise ValueError(
            f"{name}: expected a mask for each of its {len(tokens)} tokens, got {len(rows)}"
        )
    return tokens, rows


def _check_drawn(drawn: Tensor, counts: Tensor, ids: Tensor) -> None:
    """That each token is among its row's: a mask that is a token late would train on -inf."""
    row_of = torch.repeat_interleave(counts)
    kept = torch.zeros(len(drawn), dtype=torch.bool)
    kept[row_of[ids == drawn[row_of]]] = True
    lost = (drawn >= 0) & ~kept
    if lost.any():
        row = int(lost.nonzero()[0])
        raise ValueError(
            f"sampled: expected each token among the ids that its mask keeps, got token "
            f"{int(drawn[row])} outside of {int(counts[row])} in row {row}"
        )


# ---- the processor ------------------------------------------------------------------------------


class Supports:
    """Which slice each of vLLM's slots is kept inside: a table on the host, its copy on the device.

    A slot is a place in the persistent batch (V1), or of a request (model runner V2).
    """

    def __init__(self, num_slots: int, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.codes = [0] * num_slots
        self._stale = False
        self._table = torch.zeros(num_slots, dtype=torch.int64, device=self.device)

    def put(self, slot: int, code: int) -> int:
        """`code`, which the slot now has."""
        if self.codes[slot] != code:
            self.codes[slot], self._stale = code, True
        return code

    def update(self, changes: Any) -> None:
        """V1's `BatchUpdate`, in the order that it asks for."""
        for slot in changes.removed:
            self.put(slot, 0)
        for slot, params, _, _ in changes.added:
            self.put(slot, code_of(params.extra_args))
        for source, target, direction in changes.moved:
            self.move(source, target, direction.name == "SWAP")

    def move(self, source: int, target: int, swap: bool) -> None:
        there = self.codes[target]
        self.put(target, self.codes[source])
        self.put(source, there if swap else 0)

    def flush(self) -> None:
        """To the device, without waiting for it: no later step writes what is copied."""
        if self._stale:
            pinned = self.device.type == "cuda"
            host = torch.tensor(self.codes, dtype=torch.int64, pin_memory=pinned)
            self._table.copy_(host, non_blocking=True)
            self._stale = False

    def apply(self, logits: Tensor, slots: Sequence[int], slot_of_row: Tensor | None) -> Tensor:
        """-inf outside of its support, in place, in every row of a slot that has one.

        Args:
            logits: `[rows, V]`.
            slots: those that have a row, on the host.
            slot_of_row: `[rows]` on the device; None: row n is of slot n.

        Two launches for each different support among `slots`, no temporary as wide as the logits.
        """
        codes = {self.codes[slot] for slot in slots}
        if not any(codes):
            return logits
        table = self._table
        of_row = table[: len(logits)] if slot_of_row is None else table.index_select(0, slot_of_row)
        for code in codes - {0}:
            start, stop = code >> _SHIFT, code & ((1 << _SHIFT) - 1)
            for outside in (logits[:, :start], logits[:, stop:]):
                if len(codes) == 1:
                    outside.fill_(-torch.inf)
                else:
                    outside.masked_fill_((of_row == code).unsqueeze(-1), -torch.inf)
        return logits


def code_of(extra_args: Mapping[str, Any] | None) -> int:
    """The support that a request asks for as one int, or 0; ValueError if it makes no sense."""
    asked = (extra_args or {}).get(SUPPORT_ARG)
    if asked is None:
        return 0
    start, stop = _checked(SUPPORT_ARG, asked)
    return start << _SHIFT | stop


def _checked(name: str, given: Any) -> tuple[int, int]:
    ends = list(given) if isinstance(given, (list, tuple)) else []
    if len(ends) != 2 or any(type(end) is not int for end in ends):
        raise ValueError(f"{name}: expected two ints, start and stop, got {given!r}")
    if not 0 <= ends[0] < ends[1] < 1 << 31:
        raise ValueError(f"{name}: expected 0 <= start < stop < 2^31, got {given!r}")
    return ends[0], ends[1]


@functools.cache
def _processor() -> type:
    """A class of both of vLLM's interfaces, so that one name serves whichever runner it starts."""
    from vllm.v1.sample.logits_processor import LogitsProcessor

    bases: tuple[type, ...] = (LogitsProcessor,)
    try:
        from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as OfRunnerV2

        bases += (OfRunnerV2,)
    except ModuleNotFoundError:  # vLLM before 0.31
        pass

    class SupportProcessor(*bases):  # type: ignore[misc]
        """Keeps requests with `extra_args=support_args(..)` inside their slice of the vocabulary.

            LLM(model, logits_processors=["logpi.integrations.vllm:SupportProcessor"])

        Logits outside of it are -inf before temperature, top-k, top-p and min-p. Other requests
        are left as they are.
        """

        def __init__(self, vllm_config: Any, *of_runner: Any) -> None:
            if len(of_runner) == 1:  # V2: req_states
                slots, device = of_runner[0].max_num_reqs, of_runner[0].device
            else:  # V1: device, is_pin_memory
                slots, device = vllm_config.scheduler_config.max_num_seqs, of_runner[0]
            self.supports = Supports(slots, device)

        @classmethod
        def validate_params(cls, sampling_params: Any) -> None:
            code_of(sampling_params.extra_args)

        # V1

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: Any) -> None:
            if batch_update is not None:
                self.supports.update(batch_update)
                self.supports.flush()

        # V2

        def add_request(self, req_idx: int, sampling_params: Any) -> bool:
            return self.supports.put(req_idx, code_of(sampling_params.extra_args)) != 0

        def apply_staged_writes(self) -> None:
            self.supports.flush()

        # both

        def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
            if ctx is None:
                return self.supports.apply(logits, range(len(logits)), None)
            slots = ctx.idx_mapping_np.tolist()
            return self.supports.apply(logits, slots, ctx.expanded_idx_mapping)

    SupportProcessor.__module__ = __name__
    SupportProcessor.__qualname__ = "SupportProcessor"
    return SupportProcessor


def __getattr__(name: str) -> Any:
    if name == "SupportProcessor":  # vLLM asks for it by name; importing this file needs no vLLM
        return _processor()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
