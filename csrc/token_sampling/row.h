// A row of logits, and what of it can be drawn. Included where reach.h is.

constexpr double kLog2e = 1.44269504088896340736;
constexpr double kLn2 = 0.69314718055994530942;
// Elements a maximum: what truncation need not look at again. Elements a partial sum: what a draw
// looks at again.
constexpr int kBlock = 128;
constexpr int kTile = 1024;
constexpr float kLargest = 3.40282346638528859812e38f;

template <class T>
LOGPI_INLINE T minus_infinity();
template <>
float minus_infinity<float>() {
  return -__builtin_inff();
}
template <>
bf16_t minus_infinity<bf16_t>() {
  return {0xff80};
}
template <>
f16_t minus_infinity<f16_t>() {
  return {0xfc00};
}

// f(z, i) for packs of n elements in their order, as floats: two vectors each; what lies behind the
// end is -inf.
template <class T, class F>
LOGPI_INLINE void over_packs(const T* z, int64_t n, const F& f) {
  alignas(kBytes) float x[kPack];
  int64_t i = 0;
  for (; i + kPack <= n; i += kPack) {
    unpack(z + i, x);
    f(x, i);
  }
  if (i < n) {
    T tail[kPack];
    for (int j = 0; j < kPack; ++j) tail[j] = i + j < n ? z[i + j] : minus_infinity<T>();
    unpack(tail, x);
    f(x, i);
  }
}

// f(z, id) for elements of at least `least`, which is above -inf, in their order.
template <class T, class F>
LOGPI_INLINE void at_least(const T* z, int64_t from, int64_t n, float least, const F& f) {
  const float below = __builtin_nextafterf(least, -__builtin_inff());
  over_packs(z + from, n, [&](const float* x, int64_t i) {
    const vfloat a = load<vfloat>(x), b = load<vfloat>(x + kLanes);
    if (all_at_most(a > b ? a : b, below)) return;
    for (int j = 0; j < kPack; ++j) {
      if (x[j] >= least) f(x[j], from + i + j);
    }
  });
}

// Maxima of the row's blocks; false where there is NaN.
template <class T>
static bool block_maxima(const T* z, int64_t n, float* maxima) {
  vint nan{};
  for (int64_t from = 0; from < n; from += kBlock) {
    const int64_t size = n - from < kBlock ? n - from : kBlock;
    vfloat best = splat(-__builtin_inff());
    int64_t i = from;
    for (; i + kPack <= from + size; i += kPack) {
      const Pack x = load_pack(z + i);
      nan |= (x.a != x.a) | (x.b != x.b);
      const vfloat top = x.a > x.b ? x.a : x.b;
      best = best > top ? best : top;
    }
    over_packs(z + i, from + size - i, [&](const float* p, int64_t) {
      const vfloat a = load<vfloat>(p), b = load<vfloat>(p + kLanes);
      nan |= (a != a) | (b != b);
      const vfloat top = a > b ? a : b;
      best = best > top ? best : top;
    });
    maxima[from / kBlock] = hmax(best);
  }
  for (int i = 0; i < kLanes; ++i) {
    if (nan[i]) return false;
  }
  return true;
}

// Weights of a row are e^((z - top) / temperature), by way of 2^((z - top) scale).
struct Scale {
  float top, scale;
  double factor;  // 1 / temperature

  static Scale of(float top, double temperature) {
    const double scale = kLog2e / temperature;  // kept where 0 and -inf times it stay so
    return {top,
            (float)(scale < 1e-37  ? 1e-37
                    : scale > 1e38 ? 1e38
                                   : scale),
            temperature < 1e-300 ? 1e300 : 1 / temperature};
  }
  // In log2. Subtracted first: the largest is at exactly 0.
  __attribute__((always_inline)) vfloat exponents(vfloat z) const {
    return exp2_range((z - top) * scale);
  }
  // Whether all up to z have a weight of exactly 0.
  bool vanishes(float z) const { return (z - top) * scale < -126; }
};

struct Mass {
  vdouble sum{}, dot{};  // of w, of w log2 w

  __attribute__((always_inline)) void add(const Scale& by, vfloat z) {
    const vfloat t = by.exponents(z), w = exp2(t);
    add_lanes(sum, w);  // in double: a weight of 1 swallows nothing
    add_lanes(dot, w * t);
  }
  __attribute__((always_inline)) void add(const Scale& by, const float* x) {
    add(by, load<vfloat>(x));
    add(by, load<vfloat>(x + kLanes));
  }
};

// The first place where the sum of n weights is above the target, or the last weight above 0;
// `target` loses what was passed. -1: nothing there but zeros.
static int64_t walk(const float* w, int64_t n, double& target) {
  int64_t last = -1;
  for (int64_t i = 0; i < n; ++i) {
    if (w[i] == 0) continue;
    last = i;
    if (w[i] > target) return i;
    target -= (double)w[i];
  }
  return last;
}
