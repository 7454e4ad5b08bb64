// A tile's sum of floats on a CPU, held whole by vectors of 64 bits in a coarse and a fine part; a
// value that these cannot hold goes to `rest`, one by one. Included where sign_bits is.

void add_each(ExactSum& to, vint bits, unsigned lanes) {
  for (; lanes; lanes &= lanes - 1) {
    const uint32_t one = (uint32_t)bits[__builtin_ctz(lanes)];
    const Addend value = addend(one);
    if (value.limb < kLimbs) {
      to.limbs[value.limb] += value.value;
    } else {
      to.above += is_above(one);
      to.below += is_below(one);
    }
  }
}

void deposit(ExactSum& to, int limb, int64_t low, int64_t high) {
  to.limbs[limb] += low;
  to.limbs[limb + 32 / kLimbBits] += high;
}

#if defined(__AVX512F__)
// Integers: units of 2^-46 for values of [2^-23, 2^9), of 2^-78 for those of [2^-55, 2^-23).
struct TileSum {
  static constexpr int kCoarse = 13, kFine = 9;  // limbs of these units
  static constexpr int32_t kLeast = (127 - 55) << 23, kSmall = (127 - 23) << 23;
  static constexpr int32_t kMost = (127 + 9) << 23;
  vlong coarse = {}, fine = {};

  LOGPI_INLINE vlong add_halves(vlong to, vfloat x) {
    to += (vlong)_mm512_cvtps_epi64(_mm512_castps512_ps256((__m512)x));
    return to + (vlong)_mm512_cvtps_epi64(_mm512_extractf32x8_ps((__m512)x, 1));
  }
  LOGPI_INLINE void add(TileSum& to, vint bits, ExactSum& rest) {
    const vint magnitude = bits & 0x7fffffff;
    const vint unusual =
        ((vuint)(magnitude - kSmall) >= (uint32_t)(kMost - kSmall)) & (magnitude != 0);
    if (sign_bits(unusual)) {  // of log-probs some, of advantages hardly ever
      const vint small = (magnitude >= kLeast) & (magnitude < kSmall);
      to.fine = add_halves(to.fine, from_bits(bits & small) * 0x1p78f);
      add_each(rest, bits, sign_bits(unusual & ~small));
      bits &= ~unusual;
    }
    to.coarse = add_halves(to.coarse, from_bits(bits) * 0x1p46f);
  }
  static int64_t sum(vlong x) { return _mm512_reduce_add_epi64((__m512i)x); }
  void add_to(ExactSum& to) const {
    deposit(to, kCoarse, sum(coarse & 0xffffffff), sum(coarse >> 32));
    deposit(to, kFine, sum(fine & 0xffffffff), sum(fine >> 32));
  }
};
#else
// Doubles, for values of [2^-39, 2^12): multiples of 2^-22, as kRound leaves them, and multiples of
// 2^-62 below 2^-23, which it rounds off.
struct TileSum {
  static constexpr int kCoarse = 16, kFine = 11;
  static constexpr int32_t kLeast = (127 - 39) << 23, kMost = (127 + 12) << 23;
  static constexpr double kRound = 0x1.8p30;
  vdouble coarse[2] = {vdouble{} + kRound, vdouble{} + kRound}, fine[2] = {};

  LOGPI_INLINE void add(TileSum& to, vint bits, ExactSum& rest) {
    const vint magnitude = bits & 0x7fffffff;
    const vint unusual =
        ((vuint)(magnitude - kLeast) >= (uint32_t)(kMost - kLeast)) & (magnitude != 0);
    if (sign_bits(unusual)) {
      add_each(rest, bits, sign_bits(unusual));
      bits &= ~unusual;
    }
    vfloat_half halves[2];
    memcpy(halves, &bits, sizeof bits);
    for (int h = 0; h < 2; ++h) {
      const vdouble x = __builtin_convertvector(halves[h], vdouble), next = to.coarse[h] + x;
      to.fine[h] += x - (next - to.coarse[h]);
      to.coarse[h] = next;
    }
  }
  static void add_to(ExactSum& to, int limb, double units) {
    deposit(to, limb, (int64_t)units & 0xffffffff, (int64_t)units >> 32);
  }
  void add_to(ExactSum& to) const {
    for (int h = 0; h < 2; ++h) {
      add_to(to, kCoarse, lanes(coarse[h] - kRound) * 0x1p22);
      add_to(to, kFine, lanes(fine[h]) * 0x1p62);
    }
  }
};
#endif
