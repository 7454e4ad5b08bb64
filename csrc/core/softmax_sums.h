// Sums of a softmax over a row: sum e^d, sum d e^d, sum e^2d and sum d, with d the distance to a
// reference that is one of the row's own values: in the end its maximum.
//
// A row is cut into at most kSegments segments and those into chunks, by its length alone, so any
// thread may take any segment and the row's bits stay the same. Every chunk is read from memory
// once: it is summed against the reference of the chunks before it; where its sums say that this
// was too low, later chunks get a higher one. Only the chunk that holds the row's maximum is summed
// a second time, with more care. A pass that looks for the maximum first would cost 30 % in cache
// and 45 % out of memory (docs/ops/token_log_probs.md).

constexpr int kSegments = 8;
// 32 terms a lane, then on in double: what float rounding can gather there stays below 2^-21. A
// chunk is at most 8 KiB, so it is still in L1 if it must be summed again.
constexpr int kSets = 4;
constexpr int kChunk = 32 * kSets * kLanes;
// How far ahead of the sums a row is fetched into L2. Where a core's own prefetchers cannot keep up
// with arithmetic between the loads, it takes [2048, 151936] from 0.70 to 0.84 of a plain read in
// float32 and from 0.37 to 0.65 in bf16 (Sapphire Rapids); past the row's end it is harmless.
constexpr int kAheadBytes = 2560;
// A lane's sum above this may hold a value above the reference (or many close below it).
constexpr float kLaneLimit = 1;
// In log2: a chunk summed against a reference this far below its maximum has not overflowed.
constexpr float kSafeExcess = 60;

enum class Want { lse, entropy, all };

template <class T>
LOGPI_INLINE void pad_pack(T* pack, const T* z, int n, T padding) {
  for (int i = 0; i < kPack; ++i) pack[i] = i < n ? z[i] : padding;
}
LOGPI_INLINE float minus_infinity(const float*) { return -__builtin_inff(); }
LOGPI_INLINE bf16_t minus_infinity(const bf16_t*) { return {0xff80}; }
LOGPI_INLINE f16_t minus_infinity(const f16_t*) { return {0xfc00}; }

// The maximum of packs; NaN may or may not show. 16-bit floats are compared as integers.
template <class T>
struct MaxOf {
  vshort best = vshort{} + (int16_t)-32768;
  __attribute__((always_inline)) void see(const T* p) {
    const vshort x = load<vshort>(p), key = x ^ ((x >> 15) & (int16_t)0x7fff);
    best = best > key ? best : key;
  }
  __attribute__((always_inline)) float get() const {
    short top = best[0];
    for (int i = 1; i < kPack; ++i) top = best[i] > top ? best[i] : top;
    return to_float(T{(uint16_t)(top ^ ((top >> 15) & 0x7fff))});
  }
};
template <>
struct MaxOf<float> {
  vfloat a = splat(-__builtin_inff()), b = a;
  __attribute__((always_inline)) void see(const float* p) {
    a = max_keep_nan(a, load<vfloat>(p));
    b = max_keep_nan(b, load<vfloat>(p + kLanes));
  }
  __attribute__((always_inline)) float get() const { return hmax(max_keep_nan(a, b)); }
};

template <class T>
static float max_of(const T* z, int64_t n) {
  MaxOf<T> best;
  int64_t i = 0;
  for (; i + kPack <= n; i += kPack) best.see(z + i);
  if (i < n) {
    T tail[kPack];
    pad_pack(tail, z + i, (int)(n - i), minus_infinity(z));
    best.see(tail);
  }
  return best.get();
}

LOGPI_INLINE void prefetch(const void* p, int bytes) {
  for (int line = 0; line < bytes; line += 64) {
    __builtin_prefetch((const char*)p + kAheadBytes + line, 0, 2);
  }
}

struct LaneSums {
  vfloat sum{}, dot{}, square{};
  vdouble linear{};  // z cancels in its mean as nothing else does
  vint ones{};
};

// kInfinities: -inf * 0 counts as 0. kOnes: exponentials of exactly 1 are counted, so that in a
// peaked row they do not swallow the digits of the others.
template <Want kWant, bool kInfinities, bool kOnes>
LOGPI_INLINE void accumulate(LaneSums& to, vfloat z, float ref, float scale) {
  const vfloat d = z - ref;  // subtracted first: the reference itself is at exactly 0
  const vfloat t = kInfinities || !kExp2TakesAny ? exp2_range(d * scale) : d * scale;
  vfloat e = exp2(t);
  if (kWant != Want::lse) to.dot = fma(t, e, to.dot);
  if (kOnes) {
    to.ones -= d == 0.0f;  // true is -1
    e = d == 0.0f ? vfloat{} : e;
  }
  to.sum += e;
  if (kWant == Want::all) {
    to.square = fma(e, e, to.square);
    add_lanes(to.linear, z);
  }
}

// One chunk, n elements at z. Four sets of lanes: as many independent chains.
template <Want kWant, bool kCareful, class T>
LOGPI_INLINE void sum_chunk(LaneSums* sums, const T* z, int n, float ref, float scale) {
  int i = 0;
  for (; i + 2 * kPack <= n; i += 2 * kPack) {
    prefetch(z + i, 2 * kPack * sizeof(T));
    const Pack x = load_pack(z + i), y = load_pack(z + i + kPack);
    accumulate<kWant, kCareful, kCareful>(sums[0], x.a, ref, scale);
    accumulate<kWant, kCareful, kCareful>(sums[1], x.b, ref, scale);
    accumulate<kWant, kCareful, kCareful>(sums[2], y.a, ref, scale);
    accumulate<kWant, kCareful, kCareful>(sums[3], y.b, ref, scale);
  }
  for (; i < n; i += kPack) {
    T tail[kPack];
    const int left = n - i < kPack ? n - i : kPack;
    pad_pack(tail, z + i, left, minus_infinity(z));
    const Pack x = load_pack(tail);
    vdouble linear = sums[0].linear;
    accumulate<kWant, true, kCareful>(sums[0], x.a, ref, scale);
    accumulate<kWant, true, kCareful>(sums[0], x.b, ref, scale);
    for (int j = i; kWant == Want::all && j < i + left; ++j) linear[0] += (double)to_float(z[j]);
    sums[0].linear = linear;  // without the padding, which is -inf
  }
}

// Out of line: it runs on a few chunks of a row only.
template <Want kWant, class T>
static __attribute__((noinline)) void sum_carefully(LaneSums* sums, const T* z, int n, float ref,
                                                    float scale) {
  for (int i = 0; i < kSets; ++i) sums[i] = LaneSums{};
  sum_chunk<kWant, true>(sums, z, n, ref, scale);
}

// Sums relative to a reference; dot in units of log2.
struct Sums {
  double ref = 0, sum = 0, dot = 0, square = 0;

  // The same relative to another reference; scale is log2(e) / temperature.
  Sums at(double to, double scale) const {
    if (sum == 0 || to == ref) return {to, sum, dot, square};
    const double t = (ref - to) * scale, w = __builtin_exp2(t);
    return {to, sum * w, (dot + sum * t) * w, square * w * w};
  }
  void add(const Sums& other, double scale) {
    const Sums o = other.at(ref, scale);
    sum += o.sum;
    dot += o.dot;
    square += o.square;
  }
};

template <Want kWant>
LOGPI_INLINE Sums lanes(const LaneSums* sums, float ref) {
  vdouble sum{}, dot{}, square{};
  int ones = 0;
  for (int i = 0; i < kSets; ++i) {
    add_lanes(sum, sums[i].sum);
    if (kWant != Want::lse) add_lanes(dot, sums[i].dot);
    if (kWant == Want::all) add_lanes(square, sums[i].square);
    ones += lanes(sums[i].ones);
  }
  return {(double)ref, lanes(sum) + ones, lanes(dot), lanes(square) + ones};
}

// A segment of a row. The chunk that the reference came from is kept apart: if no other segment
// has a higher one, it holds the row's maximum, and merge() sums it carefully.
struct Segment {
  Sums rest, peak;
  int64_t peak_at = -1;
  double linear = 0;
};

// Chunks [from, to) of a source: `source.chunk(at, buffer, n)` is where chunk `at` lies and its
// size. `seed` is the reference to begin with: the maximum of chunk 0.
template <Want kWant, class Source>
static Segment sum_segment(const Source& source, int64_t from, int64_t to, float seed,
                           float scale) {
  const float infinity = __builtin_inff();
  float ref = seed;
  Segment out;
  out.rest.ref = (double)ref;
  vdouble sum{}, dot{}, square{}, linear{};
  alignas(kBytes) float buffer[kChunk + kPack];
  const auto raise = [&](float max) {  // what was summed so far joins the rest
    out.rest.add({(double)ref, lanes(sum), lanes(dot), lanes(square)}, scale);
    if (out.peak_at >= 0) out.rest.add(out.peak, scale);
    out.peak_at = -1;
    out.rest = out.rest.at((double)max, scale);
    sum = dot = square = vdouble{};
    ref = max;
  };
  for (int64_t at = from; at < to; ++at) {
    int n;
    const auto* z = source.chunk(at, buffer, n);
    bool peak = at == 0;
    if (ref == -infinity) {  // nothing but -inf so far
      ref = max_of(z, n);
      out.rest.ref = (double)ref;
      peak = true;
    }
    if (ref == -infinity) {
      out.linear = -__builtin_inf();
      continue;
    }
    LaneSums sums[kSets];
    sum_chunk<kWant, false>(sums, z, n, ref, scale);
    float summed_at = ref;
    const vfloat top = max_keep_nan(max_keep_nan(sums[0].sum, sums[1].sum),
                                    max_keep_nan(sums[2].sum, sums[3].sum));
    if (!all_at_most(top, kLaneLimit)) {
      const float max = max_of(z, n);
      const float excess = (max - ref) * scale;
      if (excess > 0) {
        raise(max);
        peak = true;
        if (excess > kSafeExcess) {
          summed_at = ref;
          sum_carefully<kWant>(sums, z, n, ref, scale);
        }
      }
    }
    const vfloat dots = (sums[0].dot + sums[1].dot) + (sums[2].dot + sums[3].dot);
    if (!all_at_most(dots, infinity)) {  // perhaps a logit of -inf
      sum_carefully<kWant>(sums, z, n, ref, scale);
      summed_at = ref;
      peak = true;
    }
    if (kWant == Want::all) {
      for (const LaneSums& one : sums) linear += one.linear;
    }
    if (peak) {
      if (out.peak_at >= 0) out.rest.add(out.peak, scale);
      out.peak = lanes<kWant>(sums, summed_at);
      out.peak_at = at;
      continue;
    }
    add_lanes(sum, (sums[0].sum + sums[1].sum) + (sums[2].sum + sums[3].sum));
    if (kWant != Want::lse) add_lanes(dot, dots);
    if (kWant == Want::all) {
      add_lanes(square, (sums[0].square + sums[1].square) + (sums[2].square + sums[3].square));
    }
  }
  out.rest.add({(double)ref, lanes(sum), lanes(dot), lanes(square)}, scale);
  out.linear += lanes(linear);
  return out;
}

struct RowSums : Sums {
  double linear = 0;
};

template <Want kWant, class Source>
static RowSums merge(const Source& source, const Segment* segments, int count, float scale) {
  RowSums row;
  row.ref = segments[0].rest.ref;
  for (int i = 1; i < count; ++i) {
    const double ref = segments[i].rest.ref;
    row.ref = ref > row.ref || ref != ref ? ref : row.ref;
  }
  for (int i = 0; i < count; ++i) {
    const Segment& one = segments[i];
    row.add(one.rest, scale);
    row.linear += one.linear;
    if (one.peak_at < 0) continue;
    if (one.rest.ref != row.ref) {
      row.add(one.peak, scale);
      continue;
    }
    int n;
    alignas(kBytes) float buffer[kChunk + kPack];
    const auto* z = source.chunk(one.peak_at, buffer, n);
    LaneSums sums[kSets];
    sum_carefully<kWant>(sums, z, n, (float)row.ref, scale);
    row.add(lanes<kWant>(sums, (float)row.ref), scale);
  }
  return row;
}
