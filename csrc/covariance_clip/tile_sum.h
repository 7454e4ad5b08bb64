// A tile's sum of floats on a CPU, held whole by doubles in a coarse and a fine part. add() returns
// the lanes that these cannot hold, as left_out() finds them. Included where vflags is.

void add_times(ExactSum& to, uint32_t bits, int64_t times) {
  const Addend value = addend(bits);
  if (value.limb < kLimbs) {
    to.limbs[value.limb] += value.value * times;
  } else {
    to.above += is_above(bits) * times;
    to.below += is_below(bits) * times;
  }
}
void add_each(ExactSum& to, vint bits, unsigned lanes) {
  for (; lanes; lanes &= lanes - 1) add_times(to, (uint32_t)bits[__builtin_ctz(lanes)], 1);
}

void deposit(ExactSum& to, int limb, int64_t low, int64_t high) {
  to.limbs[limb] += low;
  to.limbs[limb + 32 / kLimbBits] += high;
}

// For values of [2^-55, 2^9): what kRound leaves of them is a multiple of 2^-35, and what it rounds
// off one of 2^-78. A lane's share of a tile fills neither.
struct TileSum {
  static constexpr int kCoarse = 14, kFine = 9;  // limbs of 2^-38 and 2^-78
  static constexpr int32_t kLeast = (127 - 55) << 23, kMost = (127 + 9) << 23;
  static constexpr double kRound = 0x1.8p17;
  vdouble coarse[2] = {vdouble{} + kRound, vdouble{} + kRound}, fine[2] = {};

  // Of magnitudes; 0 is not.
  static vflags within(vint magnitude) {
    return at_most(magnitude - kLeast, (uint32_t)(kMost - kLeast - 1), kAll);
  }
  static unsigned left_out(vint magnitude, vflags in) {
    return lane_bits(unlike(magnitude, vint{}, ~in));
  }
  static unsigned left_out(vint bits) {
    return left_out(bits & 0x7fffffff, within(bits & 0x7fffffff));
  }
  unsigned add(vint bits) {
    const vint magnitude = bits & 0x7fffffff;
    const vflags in = within(magnitude);
    const vint some = only(in, bits);
    vfloat_half halves[2];
    memcpy(halves, &some, sizeof some);
    for (int h = 0; h < 2; ++h) {
      const vdouble x = widened(halves[h]), next = coarse[h] + x;
      fine[h] += x - (next - coarse[h]);
      coarse[h] = next;
    }
    return left_out(magnitude, in);
  }
  static void add_to(ExactSum& to, int limb, double units) {
    deposit(to, limb, (int64_t)units & 0xffffffff, (int64_t)units >> 32);
  }
  void add_to(ExactSum& to) const {
    add_to(to, kCoarse, (lanes(coarse[0] - kRound) + lanes(coarse[1] - kRound)) * 0x1p38);
    add_to(to, kFine, (lanes(fine[0]) + lanes(fine[1])) * 0x1p78);
  }
};
