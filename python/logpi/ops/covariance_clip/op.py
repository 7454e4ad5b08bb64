"""Which tokens a covariance rule touches: Clip-Cov and KL-Cov.

    c_t = (A_t - mean A) (log_probs_t - mean log_probs)      means over all tokens of the mask
    KL-Cov    the K = max(1, floor(N fraction)) tokens of the largest c
    Clip-Cov  a uniform random min(K, |C|) of the tokens C with lower < c < upper

Everything is of the global batch: its cut into rows, micro-batches and ranks changes no bit. Sums
are exact integers; random keys belong to a token's place among the valid ones.
docs/ops/covariance_clip.md has the reasons.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from logpi.core import checks, cuda, triton_row
from logpi.core.backends import AUTO, Backend, select
from logpi.core.draws import check_seed_and_step

_HERE = "logpi.ops.covariance_clip."

COVARIANCES, CLIP, KL = range(3)  # rules, as csrc/covariance_clip/covariance_clip.h has them
_MOST_TOKENS = 2**31 - 1


class Call(NamedTuple):
    """A checked call; its tensors are contiguous, N tokens each."""

    log_probs: Tensor  # [..] float32 or float64
    advantages: Tensor  # [..] of the same
    loss_mask: Tensor  # [..] bool
    exclude: Tensor | None  # [..] bool
    step_at: Tensor | None  # [] int64; None: the int
    rule: int
    fraction: float
    lower: float  # rows round both to the dtype of c
    upper: float
    seed: int
    step: int
    process_group: Any


def _needs_float32(call: Call) -> str | None:
    if call.log_probs.dtype == torch.float64:
        return "serves float32, got float64"
    return None


def _needs_plain_cuda(call: Call) -> str | None:
    if call.log_probs.device.type != cuda.device_type():
        return f"needs tensors on an NVIDIA GPU, got {call.log_probs.device}"
    return _needs_float32(call)


def _needs_plain_gpu(call: Call) -> str | None:
    return triton_row.misplaced("tensors", call.log_probs) or _needs_float32(call)


def _needs_plain_cpu(call: Call) -> str | None:
    if not call.log_probs.is_cpu:
        return f"needs tensors on a CPU, got {call.log_probs.device}"
    return _needs_float32(call)


def _needs_one_process(call: Call) -> str | None:
    if call.process_group is not None:
        return "is the definition for one process and takes no process_group"
    return None


BACKENDS = (  # the first row whose why_not answers None serves the call
    Backend("cuda", _HERE + "_cuda", why_not=_needs_plain_cuda, unavailable=cuda.unavailable),
    Backend(
        "triton", _HERE + "_triton", why_not=_needs_plain_gpu, unavailable=triton_row.unavailable
    ),
    Backend("cpu", _HERE + "_native", why_not=_needs_plain_cpu),
    Backend("torch", _HERE + "reference", why_not=_needs_one_process),
)


def clip_cov_mask(
    log_probs: Tensor,  # [..]
    advantages: Tensor,  # [..]
    loss_mask: Tensor,  # [..]
    *,
    fraction: float = 2e-4,
    lower: float = 1.0,
    upper: float = 5.0,
    exclude: Tensor | None = None,  # [..]
    seed: int = 0,
    step: int | Tensor = 0,
    process_group: Any = None,
    backend: str = AUTO,
) -> Tensor:
    """The tokens whose gradient Clip-Cov drops: a few, drawn from those of high covariance.

        C = {t : lower < c_t < upper, not masked, not excluded}
        n = min(max(1, floor(N * fraction)), |C|)      of N tokens; none of none

    The draw is the n smallest keys of C, ties by index: Philox4x32-10 of (seed, step, index), where
    index counts the unmasked tokens of the global batch: ranks, then rows. Uniform, reproducible,
    the same on every backend, and the same however the batch is padded or cut.

    Args:
        log_probs: `[..]` float32 of the current policy; float64 is served by the `torch` row,
            bfloat16 and float16 are widened. No gradient flows through anything here.
        advantages: `[..]`, as log_probs.
        loss_mask: `[..]` bool (or numbers: 0 is False). What it leaves out is not looked at.
        fraction: of the N tokens to drop at the most, in (0, 1]; never percent. The product
            N * fraction is rounded to float64, then down.
        lower, upper: bounds of c, both exclusive; compared in the dtype of c. NaN is outside.
        exclude: `[..]` bool: tokens that count in N and in the means but are no candidates, such as
            those that a ratio clip has taken already.
        seed: the run's, at least 0.
        step: the update's, at least 0: another step, another draw. An int, or a 0-d int64 tensor
            on the device, so that a CUDA graph draws anew at every replay.
        process_group: ranks that hold parts of the global batch. Each returns the mask of its own
            part; only sums, histograms and counts travel. None: this process holds all of it.
        backend: `"auto"`, or the name of a row (`"cuda"`, `"triton"`, `"cpu"`, `"torch"`). A named
            row serves or raises; it never falls back.

    Returns:
        `[..]` bool. Dropped tokens should stay in the loss's denominator, as in the paper's code.

    Raises:
        ValueError, TypeError: an argument; names it, what was expected, what came.
        BackendError: no row can serve; lists every row's reason.

    Memory: 4 bytes a token (8 on a CPU) and 25 KB. No host sync on a GPU.
    Source: Cui et al. 2025 (arXiv:2505.22617); docs/ops/covariance_clip.md.
    """
    call = check_call(
        CLIP, log_probs, advantages, loss_mask, exclude, fraction, lower, upper, seed, step,
        process_group,
    )  # fmt: skip
    return _evaluate("clip_cov_mask", call, backend)


def kl_cov_mask(
    log_probs: Tensor,  # [..]
    advantages: Tensor,  # [..]
    loss_mask: Tensor,  # [..]
    *,
    fraction: float = 2e-3,
    process_group: Any = None,
    backend: str = AUTO,
) -> Tensor:
    """The tokens that KL-Cov penalises: those of the largest covariance.

        K = max(1, floor(N * fraction))      of N tokens; none of none

    Ties go to the lowest index. NaN counts as the largest, as in torch.topk: one NaN in an unmasked
    token makes a mean NaN, and the choice the first K tokens.

    Args, Raises, Memory: as `clip_cov_mask`.

    Returns:
        `[..]` bool.

    Source: Cui et al. 2025 (arXiv:2505.22617); docs/ops/covariance_clip.md.
    """
    call = check_call(
        KL, log_probs, advantages, loss_mask, fraction=fraction, process_group=process_group
    )
    return _evaluate("kl_cov_mask", call, backend)


def covariances(
    log_probs: Tensor,  # [..]
    advantages: Tensor,  # [..]
    loss_mask: Tensor,  # [..]
    *,
    process_group: Any = None,
    backend: str = AUTO,
) -> Tensor:
    """`[..]`: c of every token, exactly 0 where masked. Detached.

    In float32: two differences and a product, each rounded once; the means are exact sums, divided
    and rounded once. Equal advantages therefore give exactly 0.

    Args, Raises: as `clip_cov_mask`.
    Source: Cui et al. 2025 (arXiv:2505.22617); docs/ops/covariance_clip.md.
    """
    call = check_call(COVARIANCES, log_probs, advantages, loss_mask, process_group=process_group)
    return _evaluate("covariances", call, backend)


def _evaluate(op: str, call: Call, backend: str) -> Tensor:
    row = select(op, BACKENDS, backend, call)
    if row.name == "torch":
        from logpi.ops.covariance_clip import reference  # torch.compile can trace this import

        found: Tensor = reference.evaluate(call)
        return found
    if torch.compiler.is_compiling():
        from logpi.ops.covariance_clip import _library

        return _library.evaluate(row.name, call)
    out: Tensor = row.kernels.evaluate(call)
    return out


def check_call(
    rule: int,
    log_probs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    exclude: Tensor | None = None,
    fraction: float = 1.0,
    lower: float = 0.0,
    upper: float = 1.0,
    seed: int = 0,
    step: int | Tensor = 0,
    process_group: Any = None,
) -> Call:
    """The call, or a ValueError or TypeError that names the argument."""
    checks.dtype("log_probs", log_probs, *checks.FLOATS)
    checks.dtype("advantages", advantages, *checks.FLOATS)
    shape, device = log_probs.shape, log_probs.device
    others = {"advantages": advantages, "loss_mask": loss_mask}
    if exclude is not None:
        others["exclude"] = exclude
    for name, tensor in others.items():
        checks.tensor(name, tensor)
        if tensor.shape != shape or tensor.device != device:
            checks.shape(name, tensor, shape)
            checks.device(name, tensor, device)
    if log_probs.numel() > _MOST_TOKENS:
        raise ValueError(f"log_probs: expected at most 2^31 - 1 tokens, got {log_probs.numel()}")
    wide = torch.float64 if log_probs.dtype == torch.float64 else torch.float32
    checks.number("fraction", fraction)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: expected a number above 0, at most 1, got {fraction}")
    checks.number("lower", lower)
    checks.number("upper", upper)
    if not lower < upper:
        raise ValueError(f"upper: expected a number above lower, {lower}, got {upper}")
    seed, step, step_at = check_seed_and_step(seed, step, device)
    return Call(
        _plain(log_probs, wide),
        _plain(advantages, wide),
        _plain(loss_mask, torch.bool),
        None if exclude is None else _plain(exclude, torch.bool),
        step_at,
        rule,
        float(fraction),
        float(lower),
        float(upper),
        seed,
        step,
        process_group,
    )


def _plain(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Detached, contiguous and of the dtype; nothing is called that has nothing to do."""
    if x.requires_grad:
        x = x.detach()
    if x.dtype != dtype:
        x = x.to(dtype)
    return x if x.is_contiguous() else x.contiguous()
