"""log p(token), entropy and their kin from hidden states and the head's weight.

    logits = hidden_states @ weight.T + bias             never held as a whole
    everything else as in token_log_probs, over the row's support

The head's product is made in tiles of the vocabulary. A fold kernel takes each tile into a few
sums a row; the backward makes the tile again, writes its gradient over it, and multiplies that.
docs/ops/linear_log_probs.md derives both and says what each mode costs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from logpi.core import checks
from logpi.core.backends import AUTO, Backend, select
from logpi.core.support import KeepSet, Support
from logpi.ops.token_log_probs import BACKENDS as TOKEN_BACKENDS
from logpi.ops.token_log_probs import TokenLogProbs
from logpi.ops.token_log_probs.op import Call, check_call

_HERE = "logpi.ops.linear_log_probs."
_NO_VOCABULARY = 2**31 - 1  # of all ranks together, where nobody said


class LinearCall(NamedTuple):
    """A checked call. `head` is the call of token_log_probs on the logits that are never made: its
    `logits` have their shape, dtype and device, and no memory."""

    hidden_states: Tensor  # [N, D]
    weight: Tensor  # [V, D], of this rank
    bias: Tensor | None  # [V]
    head: Call
    dtype: torch.dtype  # of the logits
    vocab_start: int  # the id of the weight's first row
    process_group: Any
    retain_bytes: int
    workspace_bytes: int | None
    weight_grad: Tensor | None  # [V, D], added to instead of returned


def _like_tokens(row: Backend) -> Backend:
    """The row that folds tiles with the kernels of a row of token_log_probs."""

    def why_not(call: LinearCall) -> str | None:
        tile = call.hidden_states.new_empty(0, dtype=call.dtype)
        return row.why_not(call.head._replace(logits=tile))

    module = _HERE + row.module.rpartition(".")[2]
    return Backend(row.name, module, why_not=why_not, unavailable=row.unavailable)


def _needs_one_process(call: LinearCall) -> str | None:
    if call.process_group is not None:
        return "is the definition on one process and takes no process_group"
    if call.weight_grad is not None:
        return "leaves gradients to autograd and takes no weight_grad"
    return None


BACKENDS = (  # the first row whose why_not answers None serves the call
    *(_like_tokens(row) for row in TOKEN_BACKENDS if row.name != "torch"),
    Backend("torch", _HERE + "reference", why_not=_needs_one_process),
)


def linear_log_probs(
    hidden_states: Tensor,  # [.., D]
    weight: Tensor,  # [V, D]
    token_ids: Tensor,  # [..] or [.., K]
    *,
    bias: Tensor | None = None,  # [V]
    temperature: float | Tensor = 1.0,
    support: Support = None,
    vocab_size: int | None = None,
    loss_mask: Tensor | None = None,  # [..]
    softcap: float | None = None,
    logit_scale: float = 1.0,
    return_entropy: bool = False,
    return_collision: bool = False,
    return_lse: bool = False,
    return_top1: bool = False,
    return_mean_logit: bool = False,
    retain_bytes: int = 0,
    workspace_bytes: int | None = None,
    logits_dtype: torch.dtype | None = None,
    process_group: Any = None,
    vocab_start: int = 0,
    weight_grad: Tensor | None = None,  # [V, D]
    backend: str = AUTO,
) -> TokenLogProbs:
    """What `token_log_probs(hidden_states @ weight.T + bias, token_ids)` returns, without `[N, V]`.

        logits = hidden_states @ weight.T + bias
        x = softcap * tanh(logit_scale * logits / softcap) / temperature
        log_probs = x[token] - logsumexp(x)          over the row's support

    Args:
        hidden_states: `[.., D]` float32, bfloat16, float16 or float64, any leading dims; what the
            head multiplies, after the model's last norm. Gradient flows.
        weight: `[V, D]` of the same dtype. Gradient flows; a weight that wants none (a frozen head)
            costs no product for it. A sharded weight (DTensor, ZeRO-3) is refused with the call
            that gathers it.
        token_ids: `[..]` int64 (or int32), or `[.., K]` for K ids a row, each in [0, vocab_size).
        bias: `[V]`. Gradient flows.
        temperature: divides the logits; above 0. A float, or a float tensor `[..]`, one a row.
        support: the entries a row is normalised over. None: all. `slice(a, b)`: only those rows of
            the weight are multiplied. `KeepSet`: the kept ids of each row; only their rows of the
            weight are read where that is less work than multiplying all of it. A token outside
            its row's support has log-prob -inf.
        vocab_size: rows of the weight at and past it are padding: never read, gradient 0. None: V.
        loss_mask: `[..]` bool (or numbers: 0 is False). Rows where it is False are left out of
            every product: outputs and gradients are exactly 0, whatever they hold.
        softcap, logit_scale: as in `token_log_probs`.
        return_entropy: -sum p log p in nats. Gradient flows.
        return_collision, return_lse, return_top1, return_mean_logit: as in `token_log_probs`; no
            gradient.
        retain_bytes: logits to keep from the forward, in bytes: their tiles are not made again in
            the backward. Enough for all of them makes 3 products of 4. A second backward
            through the same call makes them again.
        workspace_bytes: the most that tiles may take at a time, beside the accumulators below.
            None: 64 MiB on a CPU, 256 MiB on a GPU.
        logits_dtype: of the tiles; None: the dtype of `hidden_states`, or autocast's where it is
            on. `torch.float32` gives a float32 head from bfloat16 weights without a float32
            copy of them.
        process_group: of torch.distributed, over whose ranks the rows of `weight` are spread
            (vocabulary-parallel); every rank passes the same hidden states and ids. Outputs and
            the gradient of `hidden_states` are those of the whole, on every rank; `weight` gets
            its own part. One all-gather of a few floats a token forward, one all-reduce backward.
        vocab_start: the id of this rank's first row. Shards may be uneven.
        weight_grad: a buffer `[V, D]` (`weight.grad`, or a float32 `main_grad`) to which the
            weight's gradient is added in place; autograd then gets none for `weight`.
        backend: `"auto"`, or the name of a row (`"cuda"`, `"triton"`, `"cpu"`, `"torch"`). A named
            row serves or raises; it never falls back.

    Returns:
        `TokenLogProbs`: `log_probs` and `top1` shaped as `token_ids`, the rest `[..]`. float32
        (float64 for float64 input); log_probs <= 0.

    Raises:
        ValueError: a shape or value; names the argument, what was expected, what came. Values of
            tensors are checked on a CPU only: on a GPU such a row is NaN.
        TypeError: a dtype, or a sharded weight.  BackendError: no row can serve.

    Memory: forward 4 bytes a row and output, 12 a row for the backward, and the workspace.
        Backward: the gradients, the workspace, and 8 bytes for each element of `hidden_states`
        (a float32 accumulator and the rows that take part). Never `[N, V]`.
    Waits: on a GPU a `loss_mask`, and rows whose upstream gradient is 0, are counted on the
        device; the host waits for the count once two tiles are queued behind it, and not at all
        while a CUDA graph is captured. A `KeepSet` on a GPU is measured on the host.
    Source: docs/ops/linear_log_probs.md.
    """
    call = check_linear_call(
        hidden_states, weight, token_ids, bias, temperature, support, vocab_size, loss_mask,
        softcap, logit_scale,
        (return_entropy, return_collision, return_lse, return_top1, return_mean_logit),
        retain_bytes, workspace_bytes, logits_dtype, process_group, vocab_start, weight_grad,
    )  # fmt: skip
    row = select("linear_log_probs", BACKENDS, backend, call)
    out: TokenLogProbs
    if row.name == "torch":  # the definition itself; torch differentiates it
        from logpi.ops.linear_log_probs import reference

        return reference.linear_log_probs(call)
    if torch.compiler.is_compiling():
        from logpi.ops.linear_log_probs import _library

        return _library.linear_log_probs(row.name, call)
    tensors = call.hidden_states, call.weight, call.bias
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        fields = _LinearLogProbs.apply(*tensors, call, row)  # type: ignore[no-untyped-call]
        return TokenLogProbs(*fields)
    with no_autocast(call):
        out, _ = route(call).forward(row.kernels, call, keep=False)
    return out


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        call: LinearCall,
        row: Backend,
    ) -> tuple[Tensor | None, ...]:
        with no_autocast(call):
            out, kept = route(call).forward(row.kernels, call, keep=True)
        # The rest of the call without its tensors: autograd watches those it saves.
        ctx.save_for_backward(hidden, weight, bias, *call.head[1:6], *kept[:2])
        ctx.call, ctx.head, ctx.others = call[3:], (call.head[0], call.head[6:]), kept[2:]
        ctx.row = row
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(field for field in out[2:] if field is not None))
        return tuple(out)

    @staticmethod
    def backward(
        ctx: Any, grad_log_probs: Tensor | None, grad_entropy: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        checks.differentiated_once("linear_log_probs")
        if grad_log_probs is None and grad_entropy is None:
            return (None,) * 5
        hidden, weight, bias, *rest = ctx.saved_tensors
        head = Call(ctx.head[0], *rest[:5], *ctx.head[1])
        call = LinearCall(hidden, weight, bias, head, *ctx.call[1:])
        with no_autocast(call):
            grads = route(call).backward(
                ctx.row.kernels,
                call,
                (*rest[5:], *ctx.others),
                grad_log_probs,
                grad_entropy,
                ctx.needs_input_grad[:3],
            )
        return (*grads, None, None)


def route(call: LinearCall) -> Any:
    """The module that serves: over tiles of the vocabulary, or over the kept ids of each row."""
    from logpi.ops.linear_log_probs import _kept, _tiles

    return _tiles if call.head.keep_indptr is None else _kept


def no_autocast(call: LinearCall) -> Any:
    """The dtype of the products is decided already."""
    return torch.autocast(call.hidden_states.device.type, enabled=False)


def check_linear_call(
    hidden_states: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    bias: Tensor | None,
    temperature: float | Tensor,
    support: Support,
    vocab_size: int | None,
    loss_mask: Tensor | None,
    softcap: float | None,
    logit_scale: float,
    fields: tuple[bool, bool, bool, bool, bool],
    retain_bytes: int,
    workspace_bytes: int | None,
    logits_dtype: torch.dtype | None,
    process_group: Any,
    vocab_start: int,
    weight_grad: Tensor | None,
) -> LinearCall:
    checks.dtype("hidden_states", hidden_states, *checks.FLOATS)
    if hidden_states.dim() == 0:
        raise ValueError("hidden_states: expected [.., D], got a 0-d tensor")
    size = hidden_states.shape[-1]
    checks.whole("weight", weight)
    if weight.dim() != 2 or weight.shape[1] != size:
        raise ValueError(
            f"weight: expected shape (V, {size}) for hidden_states {tuple(hidden_states.shape)}, "
            f"got {tuple(weight.shape)}"
        )
    dtype = _dtype(hidden_states, weight, logits_dtype)
    checks.device("weight", weight, hidden_states.device)
    if bias is not None:
        checks.whole("bias", bias)
        checks.dtype("bias", bias, *checks.FLOATS)
        checks.shape("bias", bias, (len(weight),))
        checks.device("bias", bias, hidden_states.device)
    checks.at_least("retain_bytes", retain_bytes, 0)
    checks.at_least("vocab_start", vocab_start, 0)
    if workspace_bytes is not None:
        checks.at_least("workspace_bytes", workspace_bytes, 1)
    if weight_grad is not None:
        checks.dtype("weight_grad", weight_grad, torch.float32, weight.dtype)
        checks.shape("weight_grad", weight_grad, weight.shape)
        checks.device("weight_grad", weight_grad, hidden_states.device)
    if process_group is None and vocab_start:
        raise ValueError(f"vocab_start: expected 0 without a process_group, got {vocab_start}")

    columns = len(weight)
    if process_group is not None:
        columns = _NO_VOCABULARY if vocab_size is None else vocab_size
    lead = hidden_states.shape[:-1]
    absent = hidden_states.new_empty((), dtype=dtype).expand(*lead, columns)
    head = check_call(
        absent, token_ids, temperature, support, vocab_size, loss_mask, softcap, logit_scale,
        fields, False,
    )  # fmt: skip
    if hidden_states.device.type == "cpu" and not torch.compiler.is_compiling():
        check_values(head)
    return LinearCall(
        hidden_states.reshape(-1, size) if size else hidden_states.reshape(head.num_rows, 0),
        weight,
        bias,
        head,
        dtype,
        vocab_start,
        process_group,
        retain_bytes,
        workspace_bytes,
        weight_grad,
    )


def check_values(head: Call) -> None:
    """Where rows are left out, a kernel does not know the numbers of the others."""
    ids = head.token_ids.view(head.num_rows, head.ids_per_row)
    _reject(
        "token_ids",
        ids,
        (ids < 0) | (ids >= head.vocab_size),
        head,
        f"ids in [0, {head.vocab_size})",
    )
    if head.temperatures is not None:
        t = head.temperatures[:, None]
        _reject("temperature", t, ~((t > 0) & t.isfinite()), head, "finite values above 0")
    if head.keep_indptr is not None and head.keep_indices is not None:
        KeepSet(head.keep_indptr, head.keep_indices).check(head.vocab_size, head.loss_mask)


def _reject(name: str, values: Tensor, bad: Tensor, head: Call, expected: str) -> None:
    if head.loss_mask is not None:
        bad = bad & head.loss_mask[:, None]
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        got = values[row, column].item()
        raise ValueError(f"{name}: expected {expected}, got {got} in row {row}")


def _dtype(hidden_states: Tensor, weight: Tensor, logits_dtype: torch.dtype | None) -> torch.dtype:
    """Of the logits; raises where operands differ and nobody said what to do."""
    checks.dtype("weight", weight, *checks.FLOATS)
    device = hidden_states.device.type
    if logits_dtype is not None:
        if logits_dtype not in checks.FLOATS:
            raise TypeError(f"logits_dtype: expected a float dtype, got {logits_dtype}")
        return logits_dtype
    if torch.is_autocast_enabled(device) and hidden_states.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    if weight.dtype != hidden_states.dtype:
        raise TypeError(
            f"weight: expected {hidden_states.dtype}, the dtype of hidden_states, got "
            f"{weight.dtype}; name a logits_dtype, or use autocast, to mix them"
        )
    return hidden_states.dtype
