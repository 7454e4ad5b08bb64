// A tile's sum of floats on a CPU, held whole by vectors of 64 bits in a coarse and a fine part.
// add() returns the lanes that these cannot hold, as left_out() finds them. Included where
// sign_bits is.

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

#if defined(__AVX512F__)
// Integers: units of 2^-46 for values of [2^-23, 2^9), of 2^-78 for those of [2^-55, 2^-23).
struct TileSum {
  static constexpr int kCoarse = 13, kFine = 9;  // limbs of these units
  static constexpr int32_t kLeast = (127 - 55) << 23, kSmall = (127 - 23) << 23;
  static constexpr int32_t kMost = (127 + 9) << 23;
  vlong coarse = {}, fine = {};

  LOGPI_INLINE vlong add_halves(vlong to, __m512 x) {
    to += (vlong)_mm512_cvtps_epi64(_mm512_castps512_ps256(x));
    return to + (vlong)_mm512_cvtps_epi64(_mm512_extractf32x8_ps(x, 1));
  }
  LOGPI_INLINE __mmask16 between(__m512i magnitude, int32_t least, int32_t most) {
    return _mm512_cmplt_epu32_mask(_mm512_sub_epi32(magnitude, _mm512_set1_epi32(least)),
                                   _mm512_set1_epi32(most - least));
  }
  // kOftenSmall: no branch, which a few small ones in every vector would mispredict.
  template <bool kOftenSmall>
  unsigned add(vint bits) {
    const __m512 x = (__m512)bits;
    const __m512i magnitude = (__m512i)(bits & 0x7fffffff);
    const __mmask16 usual = between(magnitude, kSmall, kMost);
    const __mmask16 small = between(magnitude, kLeast, kSmall);
    coarse = add_halves(coarse, _mm512_maskz_mul_ps(usual, x, _mm512_set1_ps(0x1p46f)));
    if (kOftenSmall || small) {
      fine = add_halves(fine, _mm512_maskz_mul_ps(small, x, _mm512_set1_ps(0x1p78f)));
    }
    return _mm512_test_epi32_mask(magnitude, magnitude) & ~(usual | small);
  }
  static unsigned left_out(vint bits) {
    const __m512i magnitude = (__m512i)(bits & 0x7fffffff);
    return _mm512_test_epi32_mask(magnitude, magnitude) & ~between(magnitude, kLeast, kMost);
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

  LOGPI_INLINE vint strange(vint bits) {
    const vint magnitude = bits & 0x7fffffff;
    return ((vuint)(magnitude - kLeast) >= (uint32_t)(kMost - kLeast)) & (magnitude != 0);
  }
  template <bool>
  unsigned add(vint bits) {
    const vint out = strange(bits);
    bits &= ~out;
    vfloat_half halves[2];
    memcpy(halves, &bits, sizeof bits);
    for (int h = 0; h < 2; ++h) {
      const vdouble x = __builtin_convertvector(halves[h], vdouble), next = coarse[h] + x;
      fine[h] += x - (next - coarse[h]);
      coarse[h] = next;
    }
    return sign_bits(out);
  }
  static unsigned left_out(vint bits) { return sign_bits(strange(bits)); }
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
