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

// The mean, rounded to double where it leaves 53 bits, and once to float. Carries make the limbs
// digits of [-128, 128), added upwards: how a sum was put together does not show.
LOGPI_HOST_DEVICE static inline float mean_of(const ExactSum& sum, int64_t count) {
  if (sum.above || sum.below) {
    const uint64_t infinite = 0x7ff0000000000000ull;
    double value;
    __builtin_memcpy(&value, &infinite, 8);
    return (float)(sum.above && sum.below ? value - value : sum.above ? value : -value);
  }
  double total = 0, unit = 0x1p-150;
  int64_t carry = 0;
  for (int i = 0; i < kLimbs; ++i) {
    const int64_t limb = sum.limbs[i] + carry;
    carry = i + 1 < kLimbs ? (limb + 128) >> kLimbBits : 0;
    total += (double)(limb - carry * 256) * unit;
    unit *= 256;
  }
  return count ? (float)(total / (double)count) : 0.0f;
}

}  // namespace logpi
