// Sums of floats that no order of addition changes: integers that hold them whole.
//
// A float is m 2^(e - 150), m an integer of 24 bits and a sign, e in [1, 254]. Limb e / 8 gets
// m 2^(e % 8), 31 bits: room for 2^32 tokens. Ranks add up limbs.
#pragma once

#include <stdint.h>

#include "core/host_device.h"

namespace logpi {

constexpr int kLimbs = 32;
constexpr int kLimbBits = 8;

struct ExactSum {
  int64_t limbs[kLimbs];
  int64_t above, below;  // how many are inf and -inf; a NaN is both
};

struct Addend {
  int limb;  // kLimbs: infinite or NaN
  int32_t value;
};

LOGPI_HOST_DEVICE static inline Addend addend(uint32_t bits) {
  const int biased = (int)(bits >> 23 & 255), exponent = biased ? biased : 1;
  if (biased == 255) return {kLimbs, 0};
  const int32_t mantissa = (int32_t)((bits & 0x7fffff) | (biased ? 0x800000 : 0));
  const int32_t value = mantissa << exponent % kLimbBits;
  return {exponent / kLimbBits, bits >> 31 ? -value : value};
}
LOGPI_HOST_DEVICE static inline bool is_above(uint32_t bits) { return bits != 0xff800000u; }
LOGPI_HOST_DEVICE static inline bool is_below(uint32_t bits) { return bits != 0x7f800000u; }

// The mean, rounded once to double and once to float. Carries make the limbs digits, so that how a
// sum was put together does not show; they are read downwards. Writes over the limbs.
LOGPI_HOST_DEVICE static inline float mean_of(ExactSum& sum, int64_t count) {
  if (sum.above || sum.below) {
    const uint64_t infinite = 0x7ff0000000000000ull;
    double value;
    __builtin_memcpy(&value, &infinite, 8);
    return (float)(sum.above && sum.below ? value - value : sum.above ? value : -value);
  }
  for (int i = 0; i + 1 < kLimbs; ++i) {
    sum.limbs[i + 1] += sum.limbs[i] >> kLimbBits;
    sum.limbs[i] &= (1 << kLimbBits) - 1;
  }
  double total = 0, unit = 0x1p98;
  for (int i = kLimbs - 1; i >= 0; --i) {
    total += (double)sum.limbs[i] * unit;
    unit *= 1.0 / (1 << kLimbBits);
  }
  return count ? (float)(total / (double)count) : 0.0f;
}

}  // namespace logpi
