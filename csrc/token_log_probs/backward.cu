// Backward on a GPU: one read and one write of the logits, in place or not; a block a tile of a
// row.
#include "token_log_probs/backward.cuh"

#include "core/check.h"
#include "core/dispatch.h"
#include "token_log_probs/cuda.h"

namespace logpi {
namespace {

constexpr int kVectorsPerThread = 8;
template <class T>
constexpr int64_t kTile = kThreads * kVectorsPerThread * kVector<T>;

// The gradients of the row's chosen ids that lie in [from, to), into tokens[k]; `wanted(k)` tells
// which those are.
template <class T, bool kSoftcap>
struct Tokens {
  const TokenLogProbsBackward& p;
  const Gradient<T, kSoftcap>& of;
  const Upstream& up;
  int64_t n, from, to;
  float* values;  // [ids_per_row], shared

  __device__ bool wanted(int64_t k) const {
    const int64_t id = up.ids[k];
    return up.g && id >= from && id < to && up.of_id(k) != 0;
  }
  __device__ void compute() const {  // before the logits may be overwritten
    for (int64_t k = threadIdx.x; k < p.ids_per_row; k += kThreads) {
      if (!wanted(k)) continue;
      const double log_p = (double)p.log_probs[n * p.ids_per_row + k];
      values[k] = of.token(to_float(of.row.z[up.ids[k]]), up.of_id(k), up, log_p);
    }
  }
  __device__ void write(T* out) const {
    for (int64_t k = threadIdx.x; k < p.ids_per_row; k += kThreads) {
      if (wanted(k)) out[up.ids[k]] = from_float<T>(values[k]);
    }
  }
};

template <class T, bool kSoftcap>
__global__ void __launch_bounds__(kThreads, kSoftcap ? 2 : 3)
    token_log_probs_backward_tiles(TokenLogProbsBackward p, int64_t tiles) {
  float* const values = dynamic_shared<float>();
  for (int64_t tile = blockIdx.x; tile < p.num_rows * tiles; tile += gridDim.x) {
    const int64_t n = tile / tiles, from = p.first_column + tile % tiles * kTile<T>;
    const int64_t to = min(from + kTile<T>, p.first_column + p.row_length);
    T* const out = (T*)p.grad_logits + p.grad_rows.offset(n);
    const Upstream up(p, p.grad_log_probs, p.grad_entropy, n);
    if ((p.loss_mask && !p.loss_mask[n]) || !up.flows) {  // nothing flows: read nothing
      fill_zero<kThreads>(out, from, to);
      continue;
    }
    const DeviceRow<T, kSoftcap> row(p, n);
    const Gradient<T, kSoftcap> of(row, p.stats[n], up);
    const int64_t begin = max(from, row.begin), end = min(to, row.begin + row.size);
    const Tokens<T, kSoftcap> tokens{p, of, up, n, begin, end, values};
    tokens.compute();
    __syncthreads();
    fill_zero<kThreads>(out, from, min(to, row.begin));
    fill_gradient<kThreads>(of, out, begin, end);
    fill_zero<kThreads>(out, max(from, row.begin + row.size), to);
    __syncthreads();
    tokens.write(out);
    __syncthreads();  // before the next tile takes the shared values
  }
}

// A KeepSet: the few gradients wait in `scratch` while the row is zeroed.
template <class T, bool kSoftcap>
__global__ void __launch_bounds__(kThreads, kSoftcap ? 2 : 3)
    token_log_probs_backward_kept(TokenLogProbsBackward p, float* scratch) {
  float* const values = dynamic_shared<float>();
  const int64_t n = blockIdx.x;
  T* const out = (T*)p.grad_logits + p.grad_rows.offset(n);
  const Upstream up(p, p.grad_log_probs, p.grad_entropy, n);
  if ((p.loss_mask && !p.loss_mask[n]) || !up.flows) {
    fill_zero<kThreads>(out, 0, p.row_length);
    return;
  }
  const DeviceRow<T, kSoftcap> row(p, n);
  const Gradient<T, kSoftcap> of(row, p.stats[n], up);
  const Tokens<T, kSoftcap> tokens{p, of, up, n, 0, p.vocab_size, values};
  float* const mine = scratch + (row.kept - p.keep_indices);
  tokens.compute();
  for (int64_t i = threadIdx.x; i < row.size; i += kThreads) {
    mine[i] = of.element(row.kept_logit(i, p.vocab_size));
  }
  __syncthreads();
  fill_zero<kThreads>(out, 0, p.row_length);
  __syncthreads();
  for (int64_t i = threadIdx.x; i < row.size; i += kThreads) {
    const int32_t id = row.kept[i];
    if (id >= 0 && id < p.vocab_size) out[id] = from_float<T>(mine[i]);
  }
  __syncthreads();
  for (int64_t k = 0; k < p.ids_per_row; ++k) {  // a chosen id outside the support gets nothing
    const int64_t id = up.ids[k];
    if (threadIdx.x >= kWarp || id < 0 || id >= p.vocab_size || !row.warp_supports(id)) continue;
    if (threadIdx.x == 0 && tokens.wanted(k)) out[id] = from_float<T>(values[k]);
  }
}

}  // namespace

void token_log_probs_cuda_backward(const TokenLogProbsBackward& p, void* scratch, CudaPlace place) {
  check_rows(p.num_rows);
  const DeviceGuard guard(place.device);
  const cudaStream_t stream = (cudaStream_t)place.stream;
  const size_t shared = (size_t)p.ids_per_row * sizeof(float);
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    with_bool(p.softcap != 0, [&](auto softcap) {
      constexpr bool kSoftcap = decltype(softcap)::value;
      if (p.keep_indptr) {
        launch({dim3((unsigned)p.num_rows), dim3(kThreads), shared, stream},
               token_log_probs_backward_kept<T, kSoftcap>, p, (float*)scratch);
        return;
      }
      const int64_t tiles = (p.row_length + kTile<T> - 1) / kTile<T>;
      const int64_t blocks = p.num_rows * tiles;
      const unsigned grid = (unsigned)(blocks < INT32_MAX ? blocks : INT32_MAX);
      launch({dim3(grid), dim3(kThreads), shared, stream},
             token_log_probs_backward_tiles<T, kSoftcap>, p, tiles);
    });
  });
}

}  // namespace logpi
