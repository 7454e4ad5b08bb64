// The gradient of a row of logits on a GPU.
//
//     dx_v = sum_k g_k [v = id_k] - p_v (sum_k g_k + h (log p_v + entropy))
//
// with g, h the upstream gradients of log_probs and entropy. With t_v = log2(e) (x_v - ref) and
// mean_shifted = sum_v p_v (x_v - ref), log p_v + entropy = ln2 t_v - mean_shifted: two small
// numbers, where log p_v and the entropy themselves would cancel.
#pragma once

#include "token_log_probs/token_log_probs.cuh"

namespace logpi {

// The upstream gradients of a row. Those of ids that are none reach nothing.
struct Upstream {
  const TokenLogProbsParams* p;
  const float* g;  // [ids_per_row], or null
  const int64_t* ids;
  float h;
  double total = 0;
  bool flows = false;

  __device__ Upstream(const TokenLogProbsParams& params, const float* grad_log_probs,
                      const float* grad_entropy, int64_t n)
      : p(&params) {
    g = grad_log_probs ? grad_log_probs + n * params.ids_per_row : nullptr;
    ids = params.token_ids + n * params.ids_per_row;
    h = grad_entropy ? grad_entropy[n] : 0.0f;
    flows = h != 0.0f;
    for (int64_t k = 0; g && k < params.ids_per_row; ++k) {
      if (ids[k] < 0 || ids[k] >= params.vocab_size) continue;
      total += (double)g[k];
      flows = flows || g[k] != 0.0f;
    }
  }

  // The sum over the ids equal to the k-th, or 0 where an earlier one is: it will have it.
  __device__ double of_id(int64_t k) const {
    double sum = 0;
    for (int64_t j = 0; j < p->ids_per_row; ++j) {
      if (ids[j] != ids[k]) continue;
      if (j < k) return 0;
      sum += (double)g[j];
    }
    return sum;
  }
};

// What the gradient of an element takes from its row.
template <class T, bool kSoftcap>
struct Gradient {
  DeviceRow<T, kSoftcap> row;
  RowStats stats;
  typename DeviceRow<T, kSoftcap>::Value ref;
  float constant, slope;

  __device__ Gradient(const DeviceRow<T, kSoftcap>& of, RowStats s, const Upstream& up)
      : row(of), stats(s), ref(of.squash(s.ref)) {
    const double weight = (double)s.inv_sum * row.factor;
    constant = (float)(weight * ((double)up.h * (double)s.mean_shifted - up.total));
    slope = (float)(-weight * (double)up.h * kLn2);
  }

  __device__ float element(float z) const {
    const float t = fmaxf((float)(row.squash(z) - ref) * row.scale, kLowest);
    const float dx = exp2_fast(t) * fmaf(slope, t, constant);
    return kSoftcap ? dx * row.slope(z) : dx;
  }

  // At a chosen id. In double: g (1 - p) as -g expm1(log p), which keeps its digits where p rounds
  // to 1.
  __device__ float token(float z, double g, const Upstream& up, double log_p) const {
    const double prob = exp(log_p);
    double dx = -g * expm1(log_p);
    if (prob > 0.0) {
      const double x = row.factor * ((double)row.squash(z) - (double)ref);
      dx -= prob * (up.total - g) + (double)up.h * prob * (x - (double)stats.mean_shifted);
    }
    return (float)(dx * row.factor * (double)row.slope(z));
  }
};

// Writes elements [from, to) of `out` with all kBlock threads: `vector(begin, count)` those that
// fill 16-byte stores, `element(i)` gives each of the few before and after.
template <int kBlock, class T, class Element, class Vector>
__device__ void fill(T* out, int64_t from, int64_t to, const Element& element,
                     const Vector& vector) {
  if (from >= to) return;
  constexpr int n = kVector<T>;
  const int64_t head = (int64_t)((16 - (uintptr_t)(out + from) % 16) % 16 / sizeof(T));
  const int64_t begin = min(from + head, to), count = (to - begin) / n, end = begin + count * n;
  const int64_t thread = threadIdx.x;
  if (from + thread < begin) out[from + thread] = element(from + thread);
  vector(begin, count);
  if (end + thread < to) out[end + thread] = element(end + thread);
}

template <int kBlock, class T>
__device__ void fill_zero(T* out, int64_t from, int64_t to) {
  fill<kBlock>(
      out, from, to, [](int64_t) { return from_float<T>(0.0f); },
      [&](int64_t begin, int64_t count) {
        for (int64_t i = threadIdx.x; i < count; i += kBlock) {
          *((uint4*)(out + begin) + i) = make_uint4(0, 0, 0, 0);
        }
      });
}

template <int kBlock, class T, bool kSoftcap>
__device__ void fill_gradient(const Gradient<T, kSoftcap>& of, T* out, int64_t from, int64_t to) {
  constexpr int n = kVector<T>;
  const T* const z = of.row.z;
  fill<kBlock>(
      out, from, to, [&](int64_t i) { return from_float<T>(of.element(to_float(z[i]))); },
      [&](int64_t begin, int64_t count) {
        const VectorReader<T, true> reader(z + begin, count * n);
        constexpr int kAhead = 4;  // loads in flight a thread
        const auto put = [&](int64_t i, const uint4& raw) {
          float x[n];
          Unpack<T>::raw(raw, x);
#pragma unroll
          for (int j = 0; j < n; ++j) x[j] = of.element(x[j]);
          *((uint4*)(out + begin) + i) = pack<T>(x);
        };
        int64_t i = threadIdx.x;
        for (; i + (kAhead - 1) * kBlock < count; i += kAhead * kBlock) {
          uint4 raw[kAhead];
#pragma unroll
          for (int j = 0; j < kAhead; ++j) raw[j] = reader.load(i + j * kBlock);
#pragma unroll
          for (int j = 0; j < kAhead; ++j) put(i + j * kBlock, raw[j]);
        }
        for (; i < count; i += kBlock) put(i, reader.load(i));
      });
}

}  // namespace logpi
