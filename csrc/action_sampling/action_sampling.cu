// Actions drawn on a GPU: a warp a row, whose slice is a few hundred bytes. It is walked three
// times, from memory once: for its maximum, for its sums, and up to the bin that is drawn.
#include "core/check.h"
#include "core/dispatch.h"
#include "core/launch.cuh"
#include "core/online_softmax.cuh"
#include "core/philox.h"
#include "core/vector.cuh"
#include "action_sampling/cuda.h"
#include "action_sampling/exp2.h"

namespace logpi {
namespace {

constexpr int kWarps = 4;  // rows a block

// nvcc would fuse what is not said to be rounded.
__device__ inline double multiply_add(double a, double b, double c) {
  return __dadd_rn(__dmul_rn(a, b), c);
}
__device__ inline double exp2_rounded(double t) {
  const double rounded = __dadd_rn(t, kRound), f = __dsub_rn(t, __dsub_rn(rounded, kRound));
  double p = multiply_add(kExp2C7, f, kExp2C6);
  p = multiply_add(p, f, kExp2C5);
  p = multiply_add(p, f, kExp2C4);
  p = multiply_add(p, f, kExp2C3);
  p = multiply_add(p, f, kExp2C2);
  p = multiply_add(p, f, kExp2C1);
  p = multiply_add(p, f, 1.0);
  const uint64_t exponent = (uint64_t)__double_as_longlong(rounded) << 52;
  return __longlong_as_double((long long)((uint64_t)__double_as_longlong(p) + exponent));
}

// A row, in strips of a vector a lane; what lies past its end is -inf.
template <class T>
struct Strips {
  static constexpr int n = kVector<T>;
  const T* z;
  int64_t size;
  VectorReader<T> reader;

  __device__ Strips(const ActionSampling& p, int64_t row)
      : z((const T*)p.logits + p.rows.offset(row)), size(p.num_bins), reader(z, size) {}

  __device__ int64_t count() const { return (size + kWarp * n - 1) / (kWarp * n); }
  __device__ int64_t first(int64_t strip) const {
    return (strip * kWarp + threadIdx.x % kWarp) * n;
  }
  __device__ void load(int64_t strip, float (&out)[n]) const {
    load_padded(reader, z, size, first(strip) / n, out);
  }
};

// In units of log2; NaN stays.
__device__ inline double exponent_of(float z, float top, double scale) {
  const double t = __dmul_rn(__dsub_rn((double)z, (double)top), scale);
  return t < kLowestExponent ? kLowestExponent : t;
}

__device__ inline double on_grid(double w, double grid) {
  return __dsub_rn(__dadd_rn(w, grid), grid);
}

template <class T>
__device__ int64_t draw(const Strips<T>& strips, float top, double scale, double grid,
                        double target) {
  constexpr int n = Strips<T>::n;
  const int lane = threadIdx.x % kWarp;
  double before = 0.0;  // the exact sum of the strips before
  for (int64_t strip = 0; strip < strips.count(); ++strip) {
    float z[n];
    strips.load(strip, z);
    double upto[n];  // of this lane's
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      sum += on_grid(exp2_rounded(exponent_of(z[i], top, scale)), grid);
      upto[i] = sum;
    }
    double lanes = sum;  // of the lanes up to this one
    for (int step = 1; step < kWarp; step *= 2) {
      const double other = __shfl_up_sync(kFullWarp, lanes, step);
      if (lane >= step) lanes += other;
    }
    const unsigned found = __ballot_sync(kFullWarp, before + lanes > target);
    if (found != 0) {
      int at = 0;
      const double start = before + (lanes - sum);
#pragma unroll
      for (int i = 0; i < n - 1; ++i) at += start + upto[i] > target ? 0 : 1;
      return __shfl_sync(kFullWarp, strips.first(strip) + at, __ffs((int)found) - 1);
    }
    before += __shfl_sync(kFullWarp, lanes, kWarp - 1);
  }
  return strips.size - 1;  // never: the target is below the total
}

template <class T>
__global__ void __launch_bounds__(kWarps* kWarp) action_sampling_rows(ActionSampling p) {
  constexpr int n = Strips<T>::n;
  const int lane = threadIdx.x % kWarp;
  const int64_t row = (int64_t)blockIdx.x * kWarps + threadIdx.x / kWarp;
  if (row >= p.num_rows) return;  // a whole warp
  const Strips<T> strips(p, row);
  double temperature = p.temperature;
  if (p.temperatures) {
    const float t = p.temperatures[row];
    temperature = t > 0.0f && t < INFINITY ? (double)t : (double)NAN;
  }
  const double scale = kLog2e / temperature;

  float top = -INFINITY;
  for (int64_t strip = 0; strip < strips.count(); ++strip) {
    float z[n];
    strips.load(strip, z);
#pragma unroll
    for (int i = 0; i < n; ++i) top = fmaxf(top, z[i]);
  }
  top = warp_max(top);

  double rest = 0.0, dot = 0.0, total = 0.0;  // without the largest, which is 1; the exact sum
  int ones = 0;
  int64_t best = strips.size;
  for (int64_t strip = 0; strip < strips.count(); ++strip) {
    float z[n];
    strips.load(strip, z);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const double t = exponent_of(z[i], top, scale), w = exp2_rounded(t);
      total += on_grid(w, p.grid);
      dot += t * w;
      if (t == 0.0) {
        ++ones;
      } else {
        rest += w;
      }
      if (z[i] == top && strips.first(strip) + i < best) best = strips.first(strip) + i;
    }
  }
  rest = warp_sum(rest) + (double)(warp_sum(ones) - 1);
  dot = warp_sum(dot);
  total = warp_sum(total);
  for (int step = kWarp / 2; step > 0; step /= 2) {
    best = min(best, __shfl_xor_sync(kFullWarp, best, step));
  }

  const bool good = dot == dot;  // NaN wherever the row has no distribution
  int64_t bin = best;
  if (!good) {
    bin = p.num_bins / 2;
  } else if (!p.greedy) {
    const int64_t step = p.step_at ? *p.step_at : p.step;
    const int64_t id = p.row_ids ? p.row_ids[row] : row;
    const double u = uniform(p.seed, (uint64_t)step, (uint64_t)id);
    bin = draw(strips, top, scale, p.grid, __dmul_rn(u, total));
  }
  if (lane != 0) return;
  const double log_sum = log1p(rest), entropy = log_sum - kLn2 * dot / (1.0 + rest);
  const double t = ((double)to_float(strips.z[bin]) - (double)top) * scale;
  p.token_ids[row] = p.first_id + bin;
  p.log_probs[row] = good ? (float)(kLn2 * t - log_sum) : NAN;
  if (p.entropy) p.entropy[row] = entropy < 0.0 ? 0.0f : (float)entropy;
  p.actions[row] = good ? p.table[row % p.num_dims * p.num_bins + bin] : NAN;
}

}  // namespace

void action_sampling_cuda(const ActionSampling& p, ActionSamplingPlace place) {
  check_rows(p.num_rows);
  const DeviceGuard guard(place.device);
  const unsigned blocks = (unsigned)((p.num_rows + kWarps - 1) / kWarps);
  with_element(p.dtype, [&](auto element) {
    launch({dim3(blocks), dim3(kWarps * kWarp), 0, (cudaStream_t)place.stream},
           action_sampling_rows<decltype(element)>, p);
  });
}

}  // namespace logpi
