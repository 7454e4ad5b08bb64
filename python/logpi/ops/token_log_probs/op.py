"""log p(token), entropy and their kin for every row of logits, in one pass.

    x = softcap(logit_scale * logits) / temperature      over the row's support
    lse_n = logsumexp_v x_nv                 log_probs_n = x_n,token - lse_n
    entropy_n = lse_n - sum_v p_nv x_nv      collision_n = sum_v p_nv^2

No `[N, V]` probability is written. The forward keeps three floats a row; the backward reads the
logits once more. docs/ops/token_log_probs.md derives both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from logpi.core import checks, cuda, triton_row
from logpi.core.backends import AUTO, Backend, select
from logpi.core.plain_logits import refused_by_cpu, refused_by_cuda, refused_by_triton
from logpi.core.strides import may_overlap
from logpi.core.support import KeepSet, Support

_HERE = "logpi.ops.token_log_probs."


class TokenLogProbs(NamedTuple):
    """What `token_log_probs` returns; a field that was not asked for is None."""

    log_probs: Tensor
    entropy: Tensor | None = None
    collision: Tensor | None = None
    lse: Tensor | None = None
    top1: Tensor | None = None
    mean_logit: Tensor | None = None


class Call(NamedTuple):
    """A checked call, as every row takes it: N rows in row-major order of the leading dims.

    With `first_column` the logits are a tile: columns [first_column, first_column + width) of a
    row. Ids and support count from the row's own beginning; the support lies inside the tile.
    """

    logits: Tensor  # [.., V], any strides
    token_ids: Tensor  # [..] or [.., K] int64, contiguous
    loss_mask: Tensor | None  # [N] bool
    temperatures: Tensor | None  # [N] float32 (float64 with such logits); None: the scalar
    keep_indptr: Tensor | None  # [N + 1] int64
    keep_indices: Tensor | None  # [nnz] int32
    num_rows: int
    ids_per_row: int
    temperature: float
    support_begin: int
    support_end: int
    vocab_size: int
    softcap: float  # 0: none
    logit_scale: float
    entropy: bool
    collision: bool
    lse: bool
    top1: bool
    mean_logit: bool
    inplace_backward: bool
    first_column: int = 0


_MAX_IDS = 8192  # ids a row whose gradients wait in a GPU's shared memory


def _needs_few_ids(call: Call) -> str | None:
    if call.ids_per_row > _MAX_IDS:
        return f"serves up to {_MAX_IDS} ids a row, got {call.ids_per_row}"
    return refused_by_cuda(call)


def _needs_fresh_gradient(call: Call) -> str | None:
    if call.inplace_backward:
        return "autograd makes its own gradient and cannot write it over the logits"
    return None


BACKENDS = (  # the first row whose why_not answers None serves the call
    Backend("cuda", _HERE + "_cuda", why_not=_needs_few_ids, unavailable=cuda.unavailable),
    Backend(
        "triton", _HERE + "_triton", why_not=refused_by_triton, unavailable=triton_row.unavailable
    ),
    Backend("cpu", _HERE + "_native", why_not=refused_by_cpu),
    Backend("torch", _HERE + "reference", why_not=_needs_fresh_gradient),
)


def token_log_probs(
    logits: Tensor,  # [.., V]
    token_ids: Tensor,  # [..] or [.., K]
    *,
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
    inplace_backward: bool = False,
    backend: str = AUTO,
) -> TokenLogProbs:
    """The log-probability of the given tokens, and what else a trainer asks of the same row.

        x = softcap * tanh(logit_scale * logits / softcap) / temperature
        log_probs = x[token] - logsumexp(x)          over the row's support

    Args:
        logits: `[.., V]` float32, bfloat16, float16 or float64, any leading dims and strides
            (`logits[:, :-1]` is read where it lies). Gradient flows. -inf is legal.
        token_ids: `[..]` int64 (or int32), or `[.., K]` for K ids a row, each in [0, vocab_size).
        temperature: divides the logits; above 0. A float, or a float tensor `[..]`, one a row.
            (torch.compile bakes a float into its graph: pass a tensor if it changes.)
        support: the entries a row is normalised over. None: all; `slice(a, b)`: a contiguous
            range; `KeepSet`: the kept ids of each row. A token outside it has log-prob -inf.
        vocab_size: entries at and past it are padding: never read, gradient 0. None: V.
        loss_mask: `[..]` bool (or numbers: 0 is False). Rows where it is False are never read:
            every output and the gradient are exactly 0, whatever they hold, ids included.
        softcap: squashes to (-softcap, softcap) as Gemma does, before the temperature. It maps a
            logit of -inf to -softcap: exclude entries by `support`, not by -inf, when using it.
        logit_scale: multiplies the logits, before the softcap; above 0.
        return_entropy: -sum p log p in nats. Gradient flows; 0 * log 0 counts as 0.
        return_collision: sum p^2. This and the fields below carry no gradient.
        return_lse: logsumexp of x.
        return_top1: bool, True where the token is the row's argmax (the lowest id among equals).
        return_mean_logit: the mean of x over the support.
        inplace_backward: the backward writes the gradient over the logits instead of a buffer of
            their size. Whoever saved the logits then gets autograd's in-place error, and a
            second backward through this call raises RuntimeError.
        backend: `"auto"`, or the name of a row (`"cuda"`, `"triton"`, `"cpu"`, `"torch"`). A named
            row serves or raises; it never falls back.

    Returns:
        `TokenLogProbs`: `log_probs` and `top1` shaped as `token_ids`, the rest `[..]`. float32
        (float64 for float64 logits); log_probs <= 0. A row's bits depend neither on the other
        rows nor on the number of threads nor on grad mode. NaN in a row stays in that row.

    Raises:
        ValueError: a shape or value; names the argument, what was expected, what came. Values of
            tensors (ids, temperatures, kept ids) are checked on a CPU only: on a GPU such a row
            is NaN, because looking would stop the stream.
        TypeError: a dtype.  BackendError: no row can serve; lists every row's reason.

    Memory: forward 4 bytes a row and output, plus 12 a row when a gradient will be wanted; no
        `[N, V]`. Backward: one buffer like the logits, or none with `inplace_backward`. The
        `torch` row needs several float32 `[N, V]` and exists as the definition: it alone can be
        differentiated twice.
    Source: docs/ops/token_log_probs.md.
    """
    call = check_call(
        logits,
        token_ids,
        temperature,
        support,
        vocab_size,
        loss_mask,
        softcap,
        logit_scale,
        (return_entropy, return_collision, return_lse, return_top1, return_mean_logit),
        inplace_backward,
    )
    row = select("token_log_probs", BACKENDS, backend, call)
    if row.name == "torch":  # the definition itself; torch differentiates it
        from logpi.ops.token_log_probs import reference  # torch.compile can trace this import

        out: TokenLogProbs = reference.token_log_probs(call)
        return out
    if torch.compiler.is_compiling():
        from logpi.ops.token_log_probs import _library

        return _library.token_log_probs(row.name, call)
    if logits.requires_grad and torch.is_grad_enabled():
        fields = _TokenLogProbs.apply(logits, call, row)  # type: ignore[no-untyped-call]
        return TokenLogProbs(*fields)
    out, _ = row.kernels.forward(call, keep_stats=False)
    return out


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, call: Call, row: Backend) -> tuple[Tensor | None, ...]:
        out, stats = row.kernels.forward(call, keep_stats=True)
        ctx.save_for_backward(*call[:6], out.log_probs, stats)
        ctx.settings, ctx.row, ctx.spent = call[6:], row, False
        ctx.set_materialize_grads(False)
        constants = [field for field in out[2:] if field is not None]
        if constants:
            ctx.mark_non_differentiable(*constants)
        return tuple(out)

    @staticmethod
    def backward(
        ctx: Any, grad_log_probs: Tensor | None, grad_entropy: Tensor | None, *_: None
    ) -> tuple[Tensor | None, None, None]:
        checks.differentiated_once("token_log_probs")
        if grad_log_probs is None and grad_entropy is None:
            return None, None, None
        if ctx.spent:
            raise RuntimeError(
                "token_log_probs: a second backward needs the logits, and the first wrote the "
                "gradient over them (inplace_backward=True); call with inplace_backward=False"
            )
        *inputs, log_probs, stats = ctx.saved_tensors
        call = Call(*inputs, *ctx.settings)
        ctx.spent = call.inplace_backward
        grad = ctx.row.kernels.backward(call, log_probs, stats, grad_log_probs, grad_entropy)
        return grad, None, None


def check_call(
    logits: Tensor,
    token_ids: Tensor,
    temperature: float | Tensor,
    support: Support,
    vocab_size: int | None,
    loss_mask: Tensor | None,
    softcap: float | None,
    logit_scale: float,
    fields: tuple[bool, bool, bool, bool, bool],
    inplace_backward: bool,
) -> Call:
    """The call, or a ValueError or TypeError that names the argument."""
    checks.dtype("logits", logits, *checks.FLOATS)
    if logits.dim() == 0:
        raise ValueError("logits: expected [.., V], got a 0-d tensor")
    lead, columns = logits.shape[:-1], logits.shape[-1]
    device = logits.device

    checks.dtype("token_ids", token_ids, torch.int64, torch.int32)
    checks.device("token_ids", token_ids, device)
    shape = token_ids.shape
    ids_per_row = 1
    if shape == lead:
        num_rows = token_ids.numel()
    else:
        num_rows = lead.numel()
        if shape[:-1] != lead or not shape:
            raise ValueError(
                f"token_ids: expected shape {tuple(lead)} or {(*lead, 'K')} for logits "
                f"{tuple(logits.shape)}, got {tuple(shape)}"
            )
        ids_per_row = shape[-1]
    ids = token_ids if token_ids.dtype == torch.int64 else token_ids.long()
    ids = ids if ids.is_contiguous() else ids.contiguous()

    if vocab_size is None:
        vocab_size = columns
    elif isinstance(vocab_size, bool) or not isinstance(vocab_size, (int, torch.SymInt)):
        raise TypeError(f"vocab_size: expected an int, got {type(vocab_size).__name__}")
    elif not 0 < vocab_size <= columns:
        raise ValueError(f"vocab_size: expected 1 to {columns} (the logits' V), got {vocab_size}")
    if columns == 0:
        raise ValueError("logits: expected at least one vocabulary entry, got V = 0")

    temperatures = None
    if isinstance(temperature, float) or not isinstance(temperature, Tensor):
        checks.positive("temperature", temperature)
    else:
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        temperatures = _per_row("temperature", temperature, lead, device, wide)
        temperature = 1.0
    if loss_mask is not None:
        loss_mask = _per_row("loss_mask", loss_mask, lead, device, torch.bool)
    if softcap is not None:
        checks.positive("softcap", softcap)
    checks.positive("logit_scale", logit_scale)

    begin, end, indptr, indices = 0, vocab_size, None, None
    if isinstance(support, slice):
        begin, end = _slice_bounds(support, vocab_size)
    elif isinstance(support, KeepSet):
        indptr, indices = support.indptr.contiguous(), support.indices.contiguous()
        checks.device("support", indptr, device)
        checks.shape("support.indptr", indptr, (num_rows + 1,))
    elif support is not None:
        raise TypeError(
            f"support: expected None, a slice or a KeepSet, got {type(support).__name__}"
        )
    if inplace_backward:
        if torch.compiler.is_compiling():
            raise ValueError("inplace_backward: expected False under torch.compile, got True")
        if may_overlap(logits):
            raise ValueError(
                "inplace_backward: expected logits whose rows do not share memory, got shape "
                f"{tuple(logits.shape)} with strides {logits.stride()}"
            )
    return Call(
        logits,
        ids,
        loss_mask,
        temperatures,
        indptr,
        indices,
        num_rows,
        ids_per_row,
        float(temperature),
        begin,
        end,
        vocab_size,
        0.0 if softcap is None else float(softcap),
        float(logit_scale),
        *fields,
        inplace_backward,
    )


def _per_row(
    name: str, value: Tensor, lead: torch.Size, device: torch.device, dtype: torch.dtype
) -> Tensor:
    checks.tensor(name, value)
    checks.shape(name, value, lead)
    checks.device(name, value, device)
    if dtype != torch.bool:
        checks.dtype(name, value, *checks.FLOATS)
    return value.to(dtype).reshape(-1).contiguous()


def _slice_bounds(support: slice, vocab_size: int) -> tuple[int, int]:
    begin = 0 if support.start is None else support.start
    end = vocab_size if support.stop is None else support.stop
    if support.step not in (None, 1) or not 0 <= begin < end <= vocab_size:
        raise ValueError(
            f"support: expected slice(a, b) with 0 <= a < b <= {vocab_size}, got {support}"
        )
    return begin, end
