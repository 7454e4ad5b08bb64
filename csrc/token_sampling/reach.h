// Where a sum over values in falling order reaches a target, without sorting them: a radix select
// whose digits fit the values that are left. Included by token_sampling-inl.h, inside the namespace
// of its instruction set.

// A float as an integer that rises where the float falls; -0 is 0. No NaN.
LOGPI_INLINE uint32_t falling_key(float x) {
  x += 0.0f;
  uint32_t b;
  __builtin_memcpy(&b, &x, 4);
  return b & 0x80000000u ? b : ~(b | 0x80000000u);
}
LOGPI_INLINE float value_of(uint32_t key) {
  const uint32_t b = key & 0x80000000u ? key : ~key & 0x7fffffffu;
  float x;
  __builtin_memcpy(&x, &b, 4);
  return x;
}

struct Reached {
  float value;    // the first value with which the sum is at least the target
  double before;  // the sum over all larger ones
  double with;    // and with those that equal it
};

constexpr int kDigitBits = 10;

// Of n values, each with a weight (or all 1 where `w` is null). `keys` and `weights` are scratch
// of n. Where rounding keeps the sum below the target it is reached with the lowest value.
static Reached reach(const float* z, const float* w, int64_t n, double target, uint32_t* keys,
                     float* weights) {
  uint32_t low = 0xffffffffu, high = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t key = falling_key(z[i]);
    keys[i] = key;
    low = key < low ? key : low;
    high = key > high ? key : high;
  }
  if (w) memcpy(weights, w, n * sizeof(float));
  double before = 0;
  for (;;) {
    const uint32_t range = high - low;
    const int bits = range ? 32 - __builtin_clz(range) : 0;
    const int shift = bits > kDigitBits ? bits - kDigitBits : 0;
    const int bins = (int)(range >> shift) + 1;
    double sums[1 << kDigitBits];
    memset(sums, 0, bins * sizeof(double));
    for (int64_t i = 0; i < n; ++i) sums[(keys[i] - low) >> shift] += w ? (double)weights[i] : 1.0;
    int bin = 0, last = 0;  // the last that holds anything
    double last_before = before;
    for (double sum = before; bin < bins; ++bin) {
      if (sums[bin] == 0) continue;
      last = bin;
      last_before = sum;
      sum += sums[bin];
      if (sum >= target) break;
    }
    bin = last;
    before = last_before;
    if (shift == 0) return {value_of(low + (uint32_t)bin), before, before + sums[bin]};
    const uint32_t first = low + ((uint32_t)bin << shift);
    int64_t left = 0;
    low = 0xffffffffu;
    high = 0;
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t key = keys[i];
      keys[left] = key;
      if (w) weights[left] = weights[i];
      const bool mine = (key - first) >> shift == 0;
      left += mine;
      low = mine && key < low ? key : low;
      high = mine && key > high ? key : high;
    }
    n = left;
  }
}
