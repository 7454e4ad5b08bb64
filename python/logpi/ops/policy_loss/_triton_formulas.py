# mypy: ignore-errors
"""A token's loss and its slope, by objective, for the Triton kernel. All of it is float64: 64k
tokens are few, and so an objective's decisions are those of the exact ratio. NaN fails every
comparison, and stays. csrc/policy_loss/formulas.h is the same in C++."""

import triton
import triton.language as tl

# The numbers of encoding.py.
PPO_CLIP = tl.constexpr(0)
DUAL_CLIP = tl.constexpr(1)
CISPO = tl.constexpr(2)
SAPO = tl.constexpr(3)
DPPO_TV = tl.constexpr(4)
DPPO_KL = tl.constexpr(5)
DRO = tl.constexpr(6)
SURROGATE = tl.constexpr(7)
REINFORCE = tl.constexpr(8)
SFT = tl.constexpr(9)
CLIP_COV = tl.constexpr(10)
KL_COV = tl.constexpr(11)
LUFFY_RATIO = tl.constexpr(12)
LUFFY_POWER = tl.constexpr(13)
LUFFY_P = tl.constexpr(14)
LUFFY_LOG = tl.constexpr(15)
LUFFY_BOTH = tl.constexpr(16)


@triton.jit
def at_most(x, high):
    return tl.where(x > high, high, x)


@triton.jit
def at_least(x, low):
    return tl.where(x < low, low, x)


@triton.jit
def exp_of(x):
    """Not below e^-690, which is 0 where anybody looks; the interpreter warns of less."""
    return tl.exp(at_most(at_least(x, -690.0), 690.0))


@triton.jit
def exp_rest(x, exp_x):
    """e^x - 1 - x: near 0 its digits are not those of e^x."""
    near = tl.where(tl.abs(x) < 1.0, x, 0.0)
    p = 1.0 + near * (1.0 / 14.0)
    p = 1.0 + near * (1.0 / 13.0) * p
    p = 1.0 + near * (1.0 / 12.0) * p
    p = 1.0 + near * (1.0 / 11.0) * p
    p = 1.0 + near * (1.0 / 10.0) * p
    p = 1.0 + near * (1.0 / 9.0) * p
    p = 1.0 + near * (1.0 / 8.0) * p
    p = 1.0 + near * (1.0 / 7.0) * p
    p = 1.0 + near * (1.0 / 6.0) * p
    p = 1.0 + near * (1.0 / 5.0) * p
    p = 1.0 + near * (1.0 / 4.0) * p
    p = 1.0 + near * (1.0 / 3.0) * p
    return tl.where(tl.abs(x) < 1.0, near * near * 0.5 * p, exp_x - 1.0 - x)


@triton.jit
def clipped(advantage, ratio, inside, low, high):
    """-> loss, slope, clipped below, clipped above."""
    free = -advantage * ratio
    bound = -advantage * at_most(at_least(ratio, 1.0 - low), 1.0 + high)
    over = bound > free
    below = (ratio < 1.0 - low) & (advantage < 0.0)
    above = (ratio > 1.0 + high) & (advantage > 0.0)
    slope = tl.where(over | ~inside, 0.0, free)
    return tl.where(over, bound, free), slope, below, above


@triton.jit
def worth(log_prob, old, advantage, ratio, inside, selected, a, b, c, OBJECTIVE: tl.constexpr):
    """-> loss, d loss / d log_prob, and three flags."""
    no = log_prob != log_prob
    no = no & ~no
    first, second, third = no, no, no
    if OBJECTIVE == PPO_CLIP:
        loss, slope, first, second = clipped(advantage, ratio, inside, a, b)
    elif OBJECTIVE == DUAL_CLIP:
        loss, slope, first, second = clipped(advantage, ratio, inside, a, b)
        most = -advantage * c
        over = (advantage < 0.0) & (loss > most)
        loss = tl.where(over, most, loss)
        slope = tl.where(over, 0.0, slope)
        third = (ratio > c) & (advantage < 0.0)
    elif OBJECTIVE == CISPO:
        slope = -advantage * at_most(at_least(ratio, 1.0 - a), 1.0 + b)
        loss = slope * log_prob
        first = ratio < 1.0 - a
        second = ratio > 1.0 + b
    elif OBJECTIVE == SAPO:
        tau = tl.where(advantage > 0.0, a, b)
        away = exp_of(-tau * (ratio - 1.0))
        gate = 1.0 / (1.0 + away)
        loss = -advantage * gate * (4.0 / tau)
        slope = tl.where(inside, -advantage * ratio * 4.0 * gate * (away * gate), 0.0)
    elif OBJECTIVE == DPPO_TV or OBJECTIVE == DPPO_KL:
        now = exp_of(log_prob)
        before = exp_of(old)
        if OBJECTIVE == DPPO_TV:
            first = now - before < -a
            second = now - before > b
        else:
            others = tl.log((1.0 - before + 1e-8) / (1.0 - now + 1e-8))
            moved = before * (old - log_prob) + (1.0 - before) * others
            first = (moved > a) & (now < before)
            second = (moved > b) & (now > before)
        first = first & ~(advantage > 0.0)
        second = second & (advantage > 0.0)
        slope = tl.where(first | second, 0.0, -advantage * at_most(ratio, c))
        loss = tl.where(first | second, 0.0, slope * log_prob)
    elif OBJECTIVE == DRO:
        moved = log_prob - old
        loss = moved * moved * (a * 0.5) - advantage * log_prob
        slope = moved * a - advantage
    elif OBJECTIVE == SURROGATE:
        loss = -advantage * ratio
        slope = tl.where(inside, loss, 0.0)
    elif OBJECTIVE == REINFORCE:
        loss = -advantage * log_prob
        slope = -advantage
    elif OBJECTIVE == SFT:
        loss = -log_prob
        slope = tl.zeros_like(log_prob) - 1.0
    elif OBJECTIVE == CLIP_COV:
        loss, slope, first, second = clipped(advantage, ratio, inside, a, b)
        loss = tl.where(selected, 0.0, loss)
        slope = tl.where(selected, 0.0, slope)
        third = selected
    elif OBJECTIVE == KL_COV:
        moved = log_prob - old
        sign = tl.where(moved > 0.0, a, tl.where(moved < 0.0, -a, moved * a))
        loss = -advantage * ratio
        slope = tl.where(inside, loss, 0.0) + tl.where(selected, sign, 0.0)
        loss += tl.where(selected, tl.abs(moved) * a, 0.0)
        first = selected
    else:
        if OBJECTIVE == LUFFY_RATIO:
            p = exp_of(log_prob)
            value = p / (p + a)
            steep = value * (a / (p + a))
        elif OBJECTIVE == LUFFY_POWER:
            value = exp_of(log_prob * a)
            steep = value * a
        elif OBJECTIVE == LUFFY_P:
            value = exp_of(log_prob)
            steep = value
        elif OBJECTIVE == LUFFY_LOG:
            value = log_prob
            steep = tl.zeros_like(log_prob) + 1.0
        elif OBJECTIVE == LUFFY_BOTH:
            p = exp_of(log_prob)
            value = p + log_prob
            steep = p + 1.0
        else:
            value = exp_of(log_prob * 0.5)
            steep = value * 0.5
        loss = -advantage * value
        slope = -advantage * steep
    return loss, slope, first, second, third


K1 = tl.constexpr(0)
K2 = tl.constexpr(1)
K3 = tl.constexpr(2)
ABS = tl.constexpr(3)
K1_PLUS = tl.constexpr(4)
K3_PLUS = tl.constexpr(5)


@triton.jit
def penalty(x, ESTIMATOR: tl.constexpr):
    """The estimate and its slope; x = ref - log_prob."""
    slope = -x  # of k2, and behind a "+"
    if ESTIMATOR == K1 or ESTIMATOR == K1_PLUS:
        value = -x
        if ESTIMATOR == K1:
            slope = tl.zeros_like(x) + 1.0
    elif ESTIMATOR == K2:
        value = x * x * 0.5
    elif ESTIMATOR == K3 or ESTIMATOR == K3_PLUS:
        bound = at_most(at_least(x, -20.0), 20.0)
        rest = exp_rest(bound, tl.exp(bound))
        value = at_most(rest, 10.0)
        if ESTIMATOR == K3:  # -(e^x - 1), whose digits near 0 are those of x
            outside = (tl.abs(x) > 20.0) | (rest > 10.0)
            slope = tl.where(outside, 0.0, -(rest + bound))
    else:
        value = tl.abs(x)
        if ESTIMATOR == ABS:
            slope = tl.where(x > 0.0, -1.0, tl.where(x < 0.0, 1.0, x))
    return value, slope
