"""Draws from rows of logits, with the log-prob, the entropy and the set that was drawn from.

    x = logits / temperature            p = softmax of x over the kept ids
    kept: of the top_k largest, the fewest with top_p of their mass, less those below min_p p_max
    token = the first kept id whose cumulative p is above u,  u a function of (seed, step, row)

What is kept is always `logits > c` and the first few ids with `logits == c`: two numbers a row.
docs/ops/token_sampling.md has the reasons.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from logpi.core import checks, cuda, triton_row
from logpi.core.backends import AUTO, Backend, select
from logpi.core.draws import check_seed_and_step
from logpi.core.plain_logits import refused_by_cpu, refused_by_cuda, refused_by_triton
from logpi.core.support import KeepSet

_HERE = "logpi.ops.token_sampling."


class TokenSample(NamedTuple):
    """What `sample_tokens` returns; a field that was not asked for is None."""

    token_ids: Tensor
    log_probs: Tensor
    entropy: Tensor | None = None
    keep: KeepSet | None = None


class Call(NamedTuple):
    """A checked call, as every row takes it: N rows in row-major order of the leading dims."""

    logits: Tensor  # [.., V], any strides
    row_ids: Tensor | None  # [N] int64; None: 0, 1, ..
    temperatures: Tensor | None  # [N] float64; None: the scalar, here and below
    top_ks: Tensor | None  # [N] int64
    top_ps: Tensor | None  # [N] float64
    min_ps: Tensor | None  # [N] float64
    step_at: Tensor | None  # [] int64
    num_rows: int
    vocab_size: int
    temperature: float
    top_k: int  # vocab_size: off
    top_p: float  # 1: off
    min_p: float  # 0: off
    seed: int
    step: int
    greedy: bool
    truncated: bool
    entropy: bool
    keep: bool

    @property
    def capacity(self) -> int:
        """The most ids that can be kept, without looking at the device."""
        each = self.vocab_size if self.top_ks is not None else min(self.top_k, self.vocab_size)
        return self.num_rows * each


BACKENDS = (  # the first row whose why_not answers None serves the call
    Backend("cuda", _HERE + "_cuda", why_not=refused_by_cuda, unavailable=cuda.unavailable),
    Backend(
        "triton", _HERE + "_triton", why_not=refused_by_triton, unavailable=triton_row.unavailable
    ),
    Backend("cpu", _HERE + "_native", why_not=refused_by_cpu),
    Backend("torch", _HERE + "reference"),
)


def sample_tokens(
    logits: Tensor,  # [.., V]
    *,
    temperature: float | Tensor = 1.0,  # or [..]
    top_k: int | Tensor | None = None,  # or [..]
    top_p: float | Tensor | None = None,  # or [..]
    min_p: float | Tensor | None = None,  # or [..]
    seed: int,
    step: int | Tensor,
    row_ids: Tensor | None = None,  # [..]
    greedy: bool = False,
    vocab_size: int | None = None,
    return_entropy: bool = False,
    return_keep: bool = False,
    backend: str = AUTO,
) -> TokenSample:
    """One token a row, with its log-prob under the distribution that it was drawn from.

    Temperature first, then top-k, then top-p over what top-k left, then min-p. Equal logits rank by
    id, the lower first, so that exactly k are kept. The largest logit is always kept, -inf never.

    Args:
        logits: `[.., V]` float32, bfloat16 or float16; float64 is served by the `torch` row. -inf
            is a token that cannot be drawn.
        temperature: divides the logits; above 0. Like the three below a number, or a tensor `[..]`
            with one a row.
        top_k: keep the k largest; at least 1. vocab_size or more, or None: all.
        top_p: keep the fewest of the largest whose mass reaches top_p of what top-k left; above 0,
            at most 1. 1 or None: all.
        min_p: keep those of at least min_p times the largest probability; in [0, 1]. 0 or None:
            all.
        seed: the run's, at least 0.
        step: another step, another draw; at least 0. An int, or a 0-d int64 tensor on the device,
            so that a CUDA graph draws anew at every replay.
        row_ids: `[..]` int64, what names a row's draw; by default its place in the batch. With an
            id of its own a row draws the same token in whatever batch it comes.
        greedy: take the largest logit (of equal ones the lowest id) instead of a draw. Log-prob,
            entropy and keep stay those of the distribution.
        vocab_size: columns from here on are padding and are not read.
        return_entropy, return_keep: also return these.
        backend: `"auto"`, or the name of a row (`"cuda"`, `"triton"`, `"cpu"`, `"torch"`). A named
            row serves or raises; it never falls back.

    Returns:
        `TokenSample(token_ids, log_probs, entropy, keep)`. `token_ids` `[..]` int64. `log_probs`
        and `entropy` `[..]` float32 (float64 for such logits) are those of the tempered *and
        truncated* distribution, without gradient. `keep` is the `KeepSet` that
        `token_log_probs(logits, token_ids, temperature=.., support=keep)` needs to give the same
        log-probs in training, ids rising within a row; None without truncation.

        The same row has the same bits in any batch. Rows of the backend table draw from the same u;
        their tokens differ only where u falls within their rounding (some 1e-7) of a boundary.

    Raises:
        ValueError: a shape or value; names the argument, what was expected, what came. On a CPU
            also for a row with NaN or +inf in it, or nothing above -inf, and for a bad number in a
            tensor. On a GPU nothing is read back: such a row has log-prob and entropy NaN, token 0,
            and keeps token 0.
        TypeError: a dtype.  BackendError: no row can serve; lists every row's reason.

    Memory: the results. `cpu`: 20 V bytes a thread. On a GPU the indices of `keep` are a buffer for
    the most that could be kept, 4 min(top_k, V) bytes a row where top_k is an int and 4 V where
    not; what lies behind `indptr[-1]` is spare. The `torch` row: several float64 `[N, V]`.
    Source: docs/ops/token_sampling.md.
    """
    call = check_call(
        logits, temperature, top_k, top_p, min_p, seed, step, row_ids, greedy, vocab_size,
        return_entropy, return_keep,
    )  # fmt: skip
    row = select("sample_tokens", BACKENDS, backend, call)
    if row.name == "torch":
        from logpi.ops.token_sampling import reference  # torch.compile can trace this import

        return reference.forward(call)
    if torch.compiler.is_compiling():
        from logpi.ops.token_sampling import _library

        return _library.sample_tokens(row.name, call)
    out: TokenSample = row.kernels.forward(call)
    return out


def check_call(
    logits: Tensor,
    temperature: float | Tensor,
    top_k: int | Tensor | None,
    top_p: float | Tensor | None,
    min_p: float | Tensor | None,
    seed: int,
    step: int | Tensor,
    row_ids: Tensor | None,
    greedy: bool,
    vocab_size: int | None,
    entropy: bool,
    keep: bool,
) -> Call:
    """The call, or a ValueError or TypeError that names the argument."""
    checks.dtype("logits", logits, *checks.FLOATS)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits: expected [.., V] with V above 0, got {tuple(logits.shape)}")
    lead, columns = logits.shape[:-1], logits.shape[-1]
    if vocab_size is None:
        vocab_size = columns
    else:
        checks.at_least("vocab_size", vocab_size, 1)
        if vocab_size > columns:
            raise ValueError(f"vocab_size: expected at most {columns} (V), got {vocab_size}")
    seed, step, step_at = check_seed_and_step(seed, step, logits.device)
    truncated = not (top_k is None and top_p is None and min_p is None)

    temperatures = top_ks = top_ps = min_ps = None
    if isinstance(temperature, Tensor):
        temperatures, temperature = _per_row("temperature", temperature, logits), 1.0
    else:
        checks.positive("temperature", temperature)
    if isinstance(top_k, Tensor):
        top_ks, top_k = _per_row("top_k", top_k, logits, integers=True), vocab_size
    elif top_k is not None:
        checks.at_least("top_k", top_k, 1)
    if isinstance(top_p, Tensor):
        top_ps, top_p = _per_row("top_p", top_p, logits), 1.0
    elif top_p is not None:
        checks.positive("top_p", top_p)
        if top_p > 1:
            raise ValueError(f"top_p: expected a number above 0, at most 1, got {top_p}")
    if isinstance(min_p, Tensor):
        min_ps, min_p = _per_row("min_p", min_p, logits), 0.0
    elif min_p is not None:
        checks.number("min_p", min_p)
        if not 0 <= min_p <= 1:
            raise ValueError(f"min_p: expected a number in [0, 1], got {min_p}")
    return Call(
        logits.detach() if logits.requires_grad else logits,
        None if row_ids is None else _per_row("row_ids", row_ids, logits, integers=True),
        temperatures,
        top_ks,
        top_ps,
        min_ps,
        step_at,
        lead.numel(),
        vocab_size,
        float(temperature),
        vocab_size if top_k is None else min(top_k, vocab_size),
        1.0 if top_p is None else float(top_p),
        0.0 if min_p is None else float(min_p),
        seed,
        step,
        bool(greedy),
        truncated,
        bool(entropy),
        bool(keep) and truncated,
    )


def _per_row(name: str, value: Tensor, logits: Tensor, integers: bool = False) -> Tensor:
    """`[N]` int64 or float64, which holds what any dtype does."""
    if integers:
        checks.dtype(name, value, torch.int64, torch.int32)
    else:
        checks.dtype(name, value, *checks.FLOATS)
    checks.shape(name, value, logits.shape[:-1])
    checks.device(name, value, logits.device)
    return value.detach().to(torch.int64 if integers else torch.float64).reshape(-1).contiguous()
