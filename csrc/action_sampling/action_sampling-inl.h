// The CPU body of action_sampling, compiled once per instruction set: a row at a time, in double.
#include "core/simd_begin.h"
#include "core/parallel.h"
#include "core/philox.h"
#include "action_sampling/action_sampling.h"
#include "action_sampling/exp2.h"

#include <stdlib.h>

namespace logpi {
namespace LOGPI_ISA {
namespace {

#include "core/simd_double.h"

constexpr double kLog2e = 1.44269504088896340736, kLn2 = 0.69314718055994530942;

// What a thread works on: a row's logits, and its weights on the grid; both padded. And the sums of
// the weights, a vector for each pack of them.
struct Buffers {
  int64_t size;  // a multiple of kPack
  float* logits;
  double* weights;
  double* sums;

  explicit Buffers(int64_t num_bins) {
    size = (num_bins + kPack - 1) / kPack * kPack;
    const int64_t bytes = size * (sizeof(float) + sizeof(double)) + size / kPack * sizeof(vdouble);
    logits = (float*)aligned_alloc(64, (bytes + 63) / 64 * 64);
    weights = (double*)(logits + size);
    sums = weights + size;
  }
  ~Buffers() { free(logits); }
};

// The row's logits as floats, and the largest; it may not see a NaN.
template <class T>
float fill(const Buffers& row, const T* z, int64_t n) {
  vfloat best = splat(-__builtin_inff());
  int64_t i = 0;
  for (; i + kPack <= n; i += kPack) {
    unpack(z + i, row.logits + i);
    const Pack x = load_pack(row.logits + i);
    const vfloat top = x.a > x.b ? x.a : x.b;
    best = best > top ? best : top;
  }
  float top = -__builtin_inff();
  for (; i < n; ++i) {
    row.logits[i] = to_float(z[i]);
    top = top > row.logits[i] ? top : row.logits[i];
  }
  for (; i < row.size; ++i) row.logits[i] = -__builtin_inff();
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) best[j] = best[j] > best[j + half] ? best[j] : best[j + half];
  }
  return top > best[0] ? top : best[0];
}

LOGPI_INLINE vdouble load_doubles(const float* p) { return widened(load<vfloat_half>(p)); }

// max(low, x); NaN in x stays.
LOGPI_INLINE vdouble at_least(double low, vdouble x) {
#if defined(__AVX512F__)
  return (vdouble)_mm512_max_pd(_mm512_set1_pd(low), (__m512d)x);
#elif defined(__AVX2__)
  return (vdouble)_mm256_max_pd(_mm256_set1_pd(low), (__m256d)x);
#elif defined(__SSE2__)
  return (vdouble)_mm_max_pd(_mm_set1_pd(low), (__m128d)x);
#else
  return low > x ? vdouble{} + low : x;
#endif
}

LOGPI_INLINE vdouble exp2(vdouble t) {
  const vdouble rounded = t + kRound, f = t - (rounded - kRound);
  vdouble p = kExp2C7 * f + kExp2C6;
  p = p * f + kExp2C5;
  p = p * f + kExp2C4;
  p = p * f + kExp2C3;
  p = p * f + kExp2C2;
  p = p * f + kExp2C1;
  p = p * f + 1.0;
  return (vdouble)((vlong)p + ((vlong)rounded << 52));
}

// Lanes in any order: for sums that are exact.
LOGPI_INLINE double exact_lanes(vdouble x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_pd((__m512d)x);
#else
  return lanes(x);
#endif
}

// A row's sums over all but one of its largest weights, which is 1; and the exact sum of all.
struct Sums {
  double rest, dot, total;
};

Sums sum_weights(const Buffers& row, float top, double scale, double grid) {
  vdouble rest{}, dot{}, total{};
  vlong ones{};
  double* sums = row.sums;
  for (int64_t from = 0; from < row.size; from += kPack, sums += kDoubles) {
    vdouble here{};
    for (int64_t i = from; i < from + kPack; i += kDoubles) {
      const vdouble distance = load_doubles(row.logits + i) - (double)top;
      const vdouble t = at_least(kLowestExponent, distance * scale);
      const vdouble w = exp2(t), rounded = (w + grid) - grid;
      store(row.weights + i, rounded);
      here += rounded;
      dot += t * w;
      ones -= t == 0.0;  // true is -1
      rest += t == 0.0 ? vdouble{} : w;
    }
    store(sums, here);
    total += here;
  }
  int64_t tops = 0;
  for (int i = 0; i < kDoubles; ++i) tops += ones[i];
  return {lanes(rest) + (double)(tops - 1), lanes(dot), exact_lanes(total)};
}

// The first bin at which the weights' sum is above the target: its pack, its vector, its lane. All
// sums are exact and the target is below their total, so that each walk ends.
int64_t find(const Buffers& row, double target) {
  double before = 0;
  const auto passed = [&](double sum) {
    const double upto = before + sum;
    if (upto > target) return false;
    before = upto;
    return true;
  };
  const double* sums = row.sums;
  while (passed(exact_lanes(load<vdouble>(sums)))) sums += kDoubles;
  const double* w = row.weights + (sums - row.sums) / kDoubles * kPack;
  while (passed(exact_lanes(load<vdouble>(w)))) w += kDoubles;
  while (passed(*w)) ++w;
  return w - row.weights;
}

// NaN where there is one.
double largest(const Buffers& row) {
  float top = row.logits[0];
  for (int64_t i = 1; i < row.size && top == top; ++i) {
    if (!(row.logits[i] <= top)) top = row.logits[i];
  }
  return (double)top;
}

int64_t first_equal(const Buffers& row, float top) {
  int64_t i = 0;
  while (row.logits[i] != top) ++i;
  return i;
}

template <class T>
ActionSamplingError sample(const ActionSampling& p, int64_t step, int64_t n, const Buffers& row) {
  const double temperature = p.temperatures ? (double)p.temperatures[n] : p.temperature;
  if (!(temperature > 0 && temperature < __builtin_inf())) {
    return {ActionSamplingError::temperature, n, temperature};
  }
  const float top = fill(row, (const T*)p.logits + p.rows.offset(n), p.num_bins);
  const double scale = kLog2e / temperature;
  const Sums sums = sum_weights(row, top, scale, p.grid);
  if (sums.dot != sums.dot) return {ActionSamplingError::logits, n, largest(row)};

  int64_t bin;
  if (p.greedy) {
    bin = first_equal(row, top);
  } else {
    const int64_t id = p.row_ids ? p.row_ids[n] : n;
    bin = find(row, uniform(p.seed, (uint64_t)step, (uint64_t)id) * sums.total);
  }
  const double log_sum = __builtin_log1p(sums.rest);
  const double t = ((double)row.logits[bin] - (double)top) * scale;
  const double entropy = log_sum - kLn2 * sums.dot / (1 + sums.rest);
  p.token_ids[n] = p.first_id + bin;
  p.log_probs[n] = (float)(kLn2 * t - log_sum);
  if (p.entropy) p.entropy[n] = (float)(entropy < 0 ? 0 : entropy);
  p.actions[n] = p.table[n % p.num_dims * p.num_bins + bin];
  return {};
}

// Rows lie a vocabulary apart, where no hardware prefetcher looks for the next: first the page's
// address is asked for, then the lines.
constexpr int64_t kPagesAhead = 12, kRowsAhead = 4;

template <class T>
LOGPI_INLINE void prefetch(const ActionSampling& p, int64_t n) {
  if (n + kPagesAhead < p.num_rows) {
    __builtin_prefetch((const T*)p.logits + p.rows.offset(n + kPagesAhead));
  }
  if (n + kRowsAhead >= p.num_rows) return;
  const char* from = (const char*)((const T*)p.logits + p.rows.offset(n + kRowsAhead));
  const int64_t bytes = p.num_bins * (int64_t)sizeof(T);
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at);
}

template <class T>
ActionSamplingError sample_rows(const ActionSampling& p) {
  ActionSamplingError first;
  const int64_t step = p.step_at ? *p.step_at : p.step;
  const int64_t elements = 4 * p.num_bins;  // what the work in double is worth
  const int threads = threads_for(p.num_rows * elements, p.num_threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Buffers row(p.num_bins);
    for (int64_t at = 0; at < p.num_dims * p.num_bins; at += 16) __builtin_prefetch(p.table + at);
#pragma omp for schedule(static)  // neighbours, for whoever has prefetched them
    for (int64_t n = 0; n < p.num_rows; ++n) {
      prefetch<T>(p, n);
      const ActionSamplingError error = sample<T>(p, step, n, row);
      if (error.kind == ActionSamplingError::none) continue;
#pragma omp critical(logpi_action_sampling_error)
      if (first.kind == ActionSamplingError::none || error.row < first.row) first = error;
    }
  }
  return first;
}

}  // namespace

ActionSamplingError action_sampling(const ActionSampling& p) {
  switch (p.dtype) {
    case DType::float32:
      return sample_rows<float>(p);
    case DType::bfloat16:
      return sample_rows<bf16_t>(p);
    case DType::float16:
      return sample_rows<f16_t>(p);
  }
  return {};
}

}  // namespace LOGPI_ISA
}  // namespace logpi
