# mypy: ignore-errors
"""Sums of a softmax over a row, and the functions they need, for the Triton kernels.

A sum is kept as (top, rest, dot, ..): `top` is the largest value so far, `rest` the sum of
2^((x - top) scale) over all others: ONE element equal to `top` is left out. The whole sum is
1 + rest, and log(1 + rest) keeps the digits of a peaked row, where the rest *is* the entropy.

A block holds BLOCK such sums, one a lane. A new value x costs one exponential a lane and no
comparison: the larger of (top, x) stays as the top, the smaller joins the rest. One reduction at
the end of a segment makes one sum of them.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
FLOOR = tl.constexpr(-200.0)  # in log2: 2^-200 is 0 in float32, and 0 * -200 is 0


# ---- functions: tl has none of these, and libdevice is not in the interpreter -------------------


@triton.jit
def distance(x, top, scale):
    """(x - top) scale >= FLOOR. Subtracted first: the top itself is at exactly 0. What is NaN, as
    (-inf) - (-inf), gives FLOOR."""
    t = (x - top) * scale
    return tl.where(t > FLOOR, t, FLOOR)


@triton.jit
def log1p(x):
    """For x >= 0: 1 + x = 2^k (1 + f), 1 + f in [0.7, 1.42]; log(1 + f) = 2 atanh(f / (2 + f))."""
    bits = (1.0 + x).to(tl.int32, bitcast=True)
    k = ((bits - 0x3F3504F3) >> 23).to(tl.float32)
    down = tl.exp2(-k)  # exact
    f = x * down + (down - 1.0)
    s = tl.div_rn(f, 2.0 + f)
    z = s * s
    p = z * (0.3333333333 + z * (0.2 + z * (0.1428571429 + z * 0.1111111111)))
    return k * 0.693359375 + (k * -2.12194440e-4 + 2.0 * (s + s * p))  # ln 2 in two parts


@triton.jit
def expm1(x):
    """For x <= 0: the series down to -1, where exp(x) - 1 still has its digits."""
    p = 1.0 + x * 0.0909090909
    p = 1.0 + x * 0.1 * p
    p = 1.0 + x * 0.1111111111 * p
    p = 1.0 + x * 0.125 * p
    p = 1.0 + x * 0.1428571429 * p
    p = 1.0 + x * 0.1666666667 * p
    p = 1.0 + x * 0.2 * p
    p = 1.0 + x * 0.25 * p
    p = 1.0 + x * 0.3333333333 * p
    p = 1.0 + x * 0.5 * p
    return tl.where(x > -1.0, x * p, tl.exp2(x * LOG2E) - 1.0)


@triton.jit
def squash(z, cap, inner, CAP: tl.constexpr):
    """cap tanh(inner z), and its slope tanh'. Without a softcap: z and 1."""
    if CAP:
        u = z * inner
        a = tl.abs(u)
        e = tl.exp2(a * (-2.0 * LOG2E))
        w = u * u
        p = -0.0539682540 + w * (0.0218694885 + w * (-0.0088632355 + w * 0.0035921280))
        near = a + a * w * (-0.3333333333 + w * (0.1333333333 + w * p))
        # near saturation, one rounding at the size of cap and no more
        size = tl.where(a < 0.35, cap * near, cap - cap * (2.0 * e / (1.0 + e)))
        slope = 4.0 * e / ((1.0 + e) * (1.0 + e))
        return tl.where(u < 0.0, -size, size), slope
    else:
        return z, 1.0


# ---- lane-wise sums -----------------------------------------------------------------------------


@triton.jit
def no_sums(BLOCK: tl.constexpr):
    """(top, rest, dot, square, linear, carry, arg): sums of e, e t and e^2 with t the distance to
    the top in log2 and e = 2^t; of x, in two floats; and where the top is."""
    zero = tl.zeros([BLOCK], tl.float32)
    return zero - float("inf"), zero, zero, zero, zero, zero, tl.zeros([BLOCK], tl.int32)


@triton.jit
def raise_top(top, arg, x, position, KEEP: tl.constexpr, ARG: tl.constexpr):
    """The new top and the value that joins the rest; NaN stays in the top."""
    if ARG:
        higher = x > top
        if KEEP:  # kept ids come in any order
            higher = higher | ((x == top) & (position < arg))
        arg = tl.where(higher, position, arg)
    joins = tl.minimum(top, x, propagate_nan=tl.PropagateNan.ALL)
    return tl.maximum(top, x, propagate_nan=tl.PropagateNan.ALL), arg, joins


@triton.jit
def join(rest, dot, square, x, top, scale, DOT: tl.constexpr, SQUARE: tl.constexpr):
    t = distance(x, top, scale)
    e = tl.exp2(t)
    rest += e
    if DOT:
        dot += e * t
    if SQUARE:
        square += e * e
    return rest, dot, square


@triton.jit
def add_exactly(linear, carry, x):
    """linear + carry + x with what rounding loses kept in carry: z cancels in its mean."""
    total = linear + x
    part = total - linear
    return total, carry + ((linear - (total - part)) + (x - part))


@triton.jit
def fold(
    sums, x, ids, inside, scale,
    KEEP: tl.constexpr, DOT: tl.constexpr, SQUARE: tl.constexpr, LINEAR: tl.constexpr,
    ARG: tl.constexpr,
):  # fmt: skip
    """Four blocks into the lane-wise sums: the tops of all four first, so that what was summed
    before is rescaled once."""
    old, rest, dot, square, linear, carry, arg = sums
    if LINEAR:
        linear, carry = add_exactly(linear, carry, tl.where(inside[0], x[0], 0.0))
        linear, carry = add_exactly(linear, carry, tl.where(inside[1], x[1], 0.0))
        linear, carry = add_exactly(linear, carry, tl.where(inside[2], x[2], 0.0))
        linear, carry = add_exactly(linear, carry, tl.where(inside[3], x[3], 0.0))
    top, arg, x0 = raise_top(old, arg, x[0], ids[0], KEEP, ARG)
    top, arg, x1 = raise_top(top, arg, x[1], ids[1], KEEP, ARG)
    top, arg, x2 = raise_top(top, arg, x[2], ids[2], KEEP, ARG)
    top, arg, x3 = raise_top(top, arg, x[3], ids[3], KEEP, ARG)
    t = distance(old, top, scale)
    w = tl.exp2(t)
    if DOT:
        dot = (dot + rest * t) * w
    if SQUARE:
        square *= w * w
    rest *= w
    rest, dot, square = join(rest, dot, square, x0, top, scale, DOT, SQUARE)
    rest, dot, square = join(rest, dot, square, x1, top, scale, DOT, SQUARE)
    rest, dot, square = join(rest, dot, square, x2, top, scale, DOT, SQUARE)
    rest, dot, square = join(rest, dot, square, x3, top, scale, DOT, SQUARE)
    return top, rest, dot, square, linear, carry, arg


@triton.jit
def reduce_lanes(
    sums,
    scale,
    BLOCK: tl.constexpr,
    DOT: tl.constexpr,
    SQUARE: tl.constexpr,
    LINEAR: tl.constexpr,
    ARG: tl.constexpr,
):
    """One sum of BLOCK: (top, rest, dot, square, linear, arg), linear in float64."""
    tops, rest, dot, square, linear, carry, arg = sums
    top, winner = tl.max(tops, 0, return_indices=True)
    t = distance(tops, top, scale)
    w = tl.exp2(t)
    # A lane's own top joins too, except the winner's. tl.max loses NaN: here it shows again.
    own = tl.where(tl.arange(0, BLOCK) == winner, 0.0, 1.0)
    whole = tl.where(tops == tops, rest + own, float("nan"))
    if DOT:
        dot = tl.sum((dot + whole * t) * w, 0)
    else:
        dot = 0.0
    if SQUARE:
        square = tl.sum((square + own) * (w * w), 0)
    else:
        square = 0.0
    if LINEAR:
        exact = linear.to(tl.float64) + tl.where(tl.abs(linear) < float("inf"), carry, 0.0)
        linear = tl.sum(exact, 0)
    else:
        linear = tl.zeros([], tl.float64)
    if ARG:
        arg = tl.min(tl.where(tops == top, arg, 0x7FFFFFFF), 0)
    else:
        arg = 0
    return top, tl.sum(whole * w, 0), dot, square, linear, arg


@triton.jit
def no_sum():
    zero = tl.zeros([], tl.float32)
    nothing = tl.zeros([], tl.float64)
    return zero - float("inf"), zero, zero, zero, nothing, tl.zeros([], tl.int32)


@triton.jit
def merge(a, b, scale):
    """The sum of two sums, a's elements before b's."""
    a_top, a_rest, a_dot, a_square, a_linear, a_arg = a
    b_top, b_rest, b_dot, b_square, b_linear, b_arg = b
    a_wins = a_top >= b_top
    top = tl.where(a_wins, a_top, b_top)
    s = distance(a_top, top, scale)
    t = distance(b_top, top, scale)
    u = tl.exp2(s)
    w = tl.exp2(t)
    a_own = tl.where(a_wins, 0.0, 1.0)
    b_own = 1.0 - a_own
    rest = (a_rest + a_own) * u + (b_rest + b_own) * w
    dot = (a_dot + (a_rest + a_own) * s) * u + (b_dot + (b_rest + b_own) * t) * w
    square = (a_square + a_own) * (u * u) + (b_square + b_own) * (w * w)
    return top, rest, dot, square, a_linear + b_linear, tl.where(a_wins, a_arg, b_arg)
