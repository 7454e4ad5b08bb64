# mypy: ignore-errors
# Triton's language is not Python's: its annotations are values.
"""The Triton kernels: one pass over the tokens, a block a program, and the sum of the sums. Both
add in an order that the number of tokens alone sets."""

import triton
import triton.language as tl

from logpi.ops.policy_loss import encoding
from logpi.ops.policy_loss._triton_formulas import at_least, at_most, exp_rest, penalty, worth
from logpi.ops.token_log_probs._triton_kernels import I64, kernel

F64 = tl.float64
POLICY_LOSS = tl.constexpr(encoding.POLICY_LOSS)
RATIO = tl.constexpr(encoding.RATIO)
APPROX_K1 = tl.constexpr(encoding.K1)
APPROX_K3 = tl.constexpr(encoding.K3)
FRACTION = tl.constexpr(encoding.FRACTION)
KL = tl.constexpr(encoding.KL)
ENTROPY = tl.constexpr(encoding.ENTROPY)
METRICS = tl.constexpr(encoding.METRICS)
LOSS = tl.constexpr(encoding.METRICS)
TOKENS = tl.constexpr(encoding.METRICS + 1)
SUMS = encoding.METRICS + 2


@triton.jit
def load(x, at, mask):
    """Where the mask is False, 0: what lies there is not even read."""
    return tl.load(x + at, mask=mask, other=0.0).to(tl.float64)


@triton.jit
def put(partial, which: tl.constexpr, programs, value):
    tl.store(partial + which * programs + tl.program_id(0), tl.sum(value.to(tl.float64)))


@kernel
def loss_kernel(
    log_probs, entropy, old_log_probs, advantages, loss_mask, weights, ref_log_probs, importance,
    selection, a: F64, b: F64, c: F64, kl_coef: F64, entropy_coef: F64, size: I64, length: I64,
    grad_log_probs, grad_entropy, partial, programs: I64,
    OBJECTIVE: tl.constexpr, ESTIMATOR: tl.constexpr, ADVANTAGE_PER_ROW: tl.constexpr,
    WEIGHT_PER_ROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Tokens [pid BLOCK, (pid + 1) BLOCK): gradients, and sums into partial [SUMS, programs]."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < size
    row = at // length
    mask = here & (tl.load(loss_mask + at, mask=here, other=0) != 0)
    log_prob = load(log_probs, at, mask)
    old = load(old_log_probs, at, mask)
    if ADVANTAGE_PER_ROW:
        advantage = load(advantages, row, mask)
    else:
        advantage = load(advantages, at, mask)
    if WEIGHT_PER_ROW:
        weight = tl.load(weights + row, mask=mask, other=0.0)
    else:
        weight = tl.where(mask, tl.load(weights), 0.0)
    if selection is not None:
        selected = tl.load(selection + at, mask=mask, other=0) != 0
    else:
        selected = mask
    moved = log_prob - old
    inside = ~(tl.abs(moved) > 20.0)
    log_ratio = at_most(at_least(moved, -20.0), 20.0)
    ratio = tl.exp(log_ratio)

    value, slope, first, second, third = worth(
        log_prob, old, advantage, ratio, inside, selected, a, b, c, OBJECTIVE
    )
    scale = weight
    if importance is not None:
        scale = scale * load(importance, at, mask)
    policy = tl.where(mask, value * scale, 0.0)
    loss = policy
    slope = slope * scale
    if ref_log_probs is not None:
        estimate, kl_slope = penalty(load(ref_log_probs, at, mask) - log_prob, ESTIMATOR)
        estimate = tl.where(mask, estimate, 0.0)
        put(partial, KL, programs, estimate)
        loss = loss + estimate * (kl_coef * weight)
        slope = slope + kl_slope * (kl_coef * weight)
    if entropy is not None:
        nats = load(entropy, at, mask)
        put(partial, ENTROPY, programs, nats)
        loss = loss - tl.where(entropy_coef != 0.0, nats * (entropy_coef * weight), 0.0)
    if grad_log_probs is not None:
        tl.store(grad_log_probs + at, tl.where(mask, slope, 0.0).to(tl.float32), mask=here)
    if grad_entropy is not None:
        tl.store(grad_entropy + at, (-entropy_coef * weight).to(tl.float32), mask=here)
    put(partial, LOSS, programs, loss)
    put(partial, POLICY_LOSS, programs, policy)
    put(partial, RATIO, programs, tl.where(mask, ratio, 0.0))
    put(partial, APPROX_K1, programs, -log_ratio)  # 0 outside the mask, as is the next
    put(partial, APPROX_K3, programs, exp_rest(log_ratio, ratio))
    put(partial, FRACTION, programs, first & mask)
    put(partial, FRACTION + 1, programs, second & mask)
    put(partial, FRACTION + 2, programs, third & mask)
    put(partial, TOKENS, programs, mask)


@triton.jit
def total(partial, which, programs, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float64)
    for begin in range(0, programs, BLOCK):
        at = begin + lanes
        sums += tl.load(partial + which * programs + at, mask=at < programs, other=0.0)
    return tl.sum(sums)


@kernel
def finish_kernel(
    partial, programs: I64, loss, metrics, WITH_KL: tl.constexpr, WITH_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of the programs' sums: the loss, and metrics [METRICS], means over the tokens."""
    tl.store(loss, total(partial, LOSS, programs, BLOCK).to(tl.float32))
    tokens = total(partial, TOKENS, programs, BLOCK)
    tokens = tl.where(tokens > 0.0, tokens, 1.0)
    policy = total(partial, POLICY_LOSS, programs, BLOCK)
    tl.store(metrics + POLICY_LOSS, policy.to(tl.float32))
    for which in tl.static_range(1, METRICS):
        if (which != KL or WITH_KL) and (which != ENTROPY or WITH_ENTROPY):  # else never written
            mean = total(partial, which, programs, BLOCK) / tokens
            tl.store(metrics + which, mean.to(tl.float32))
