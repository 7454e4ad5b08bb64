// The CPU body of gae, compiled once per instruction set. In double throughout, rounded once.
#include "core/simd_begin.h"
#include "core/parallel.h"
#include "gae/gae.h"

namespace logpi {
namespace LOGPI_ISA {
namespace {

LOGPI_INLINE double fma(double a, double b, double c) {
#if defined(__FMA__) || defined(__ARM_NEON)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// put(at, live, A, G) for every token of a row, the last one first; `at` is where it lies. Where
// live is false A and G mean nothing.
//
// What a token hands to the one before it is x_t = gamma ((1 - lam) V_t + lam G_t), with
// G_t = r_t + x_(t+1); a masked token hands on what it was given. As slope x + offset, whose parts
// wait for nothing, a step costs the row's chain one fma.
template <class Put>
LOGPI_INLINE void walk(const GaeParams& p, int64_t row, const Put& put) {
  const double decay = p.gamma * p.lam, ahead = p.gamma * (1 - p.lam);
  const int64_t from = row * p.num_tokens;
  double handed = 0;
  for (int64_t at = from + p.num_tokens - 1; at >= from; --at) {
    const bool live = p.loss_mask[at];
    const double r = (double)p.rewards[at], v = (double)p.values[at], g = r + handed;
    put(at, live, g - v, g);
    const double slope = live ? decay : 1.0, offset = live ? ahead * v + decay * r : 0.0;
    handed = fma(slope, handed, offset);
  }
}

// The moments of a row's advantages, as sums less the first of them, whose size they share.
GaeMoments measured(const GaeParams& p, int64_t row) {
  double count = 0, first = 0, sum = 0, square = 0;
  walk(p, row, [&](int64_t, bool live, double a, double) {
    first = live && count == 0 ? a : first;
    const double d = live ? a - first : 0.0;
    count += live;
    sum += d;
    square += d * d;
  });
  const double mean = count > 0 ? sum / count : 0.0;
  return {count, first + mean, square - sum * mean};
}

template <class F>
void over_rows(const GaeParams& p, const F& f) {
  const int threads = threads_for(p.num_rows * p.num_tokens, p.num_threads);
  const int64_t block = rows_at_a_time(p.num_tokens), blocks = (p.num_rows + block - 1) / block;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t n = b * block; n < (b + 1) * block && n < p.num_rows; ++n) f(n);
  }
}

}  // namespace

void gae(const GaeParams& p) {
  double mean = 0, scale = 1;
  if (p.moments) {
    over_rows(p, [&](int64_t row) { p.moments[row] = measured(p, row); });
    double count = 0, square = 0;
    for (int64_t n = 0; n < p.num_rows; ++n) {  // in the rows' order, whatever the threads did
      const GaeMoments& m = p.moments[n];
      if (m.count == 0) continue;
      const double total = count + m.count, d = m.mean - mean;
      square += m.square + d * d * (count * m.count / total);
      mean += d * (m.count / total);
      count = total;
    }
    scale = 1 / __builtin_sqrt(square / (count > 2 ? count - 1 : 1) + 1e-8);
  }
  over_rows(p, [&](int64_t row) {  // once more rather than kept: 8 bytes a token cost as much
    walk(p, row, [&](int64_t at, bool live, double a, double g) {
      p.advantages[at] = live ? (float)((a - mean) * scale) : 0.0f;
      p.returns[at] = live ? (float)g : 0.0f;
    });
  });
}

}  // namespace LOGPI_ISA
}  // namespace logpi
