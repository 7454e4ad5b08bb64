// Forward and backward of token_log_probs in one kernel, for upstream gradients known beforehand.
//
// A persistent block a multiprocessor takes row after row: it reads a row once, keeping what fits
// of it in shared memory, and forms the gradient from there. What does not fit is read again while
// it still is in L2: 132 rows of 304 kB are 40 MB.
#include "core/check.h"
#include "core/dispatch.h"
#include "token_log_probs/backward.cuh"
#include "token_log_probs/cuda.h"

namespace logpi {
namespace {

constexpr int kGroups = 2;  // of threads that sum a segment each
constexpr int kBlock = kGroups * kThreads;

// Writes vector `i` of a row's support.
template <class T>
__device__ void put(T* out, int64_t i, const uint4& raw) {
  T* const to = out + i * kVector<T>;
  if ((uintptr_t)to % 16 == 0) {
    *(uint4*)to = raw;
    return;
  }
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
  for (int j = 0; j < kVector<T>; ++j) {
    if (sizeof(T) == 4) {
      ((uint32_t*)to)[j] = words[j];
    } else {
      ((uint16_t*)to)[j] = (uint16_t)(words[j / 2] >> (j % 2 * 16));
    }
  }
}

template <class T, bool kSoftcap>
__global__ void __launch_bounds__(kBlock, 1)
    token_log_probs_fused(TokenLogProbsForward p, TokenLogProbsBackward b, int64_t stash_vectors) {
  constexpr int n = kVector<T>;
  uint4* const stash = dynamic_shared<uint4>();
  __shared__ Partial partials[kMaxSegments * kWarps];
  __shared__ RowStats stats;
  __shared__ float token;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int64_t at_row = blockIdx.x; at_row < p.num_rows; at_row += gridDim.x) {
    T* const out = (T*)b.grad_logits + b.grad_rows.offset(at_row);
    if (p.loss_mask && !p.loss_mask[at_row]) {
      if (warp == 0) write_masked(p, at_row);
      fill_zero<kBlock>(out, 0, b.row_length);
      continue;
    }
    const DeviceRow<T, kSoftcap> row(p, at_row);
    const Segments cut = Segments::of(row.size);
    const float seed = warp_seed(row, p.vocab_size);
    const auto keep = [&](int64_t i, const uint4& raw) {
      if (i < stash_vectors) stash[i] = raw;
    };
    for (int at = warp / kWarps; at < cut.count; at += kGroups) {
      const Partial sums =
          sum_segment<Sums::entropy>(row, cut, at, seed, threadIdx.x % kThreads, keep);
      if (lane == 0) partials[at * kWarps + warp % kWarps] = sums;
    }
    __syncthreads();
    if (warp == 0) {
      const RowSums sums = merge_row(partials, cut.count * kWarps, row);
      finish(p, at_row, row, sums);
      const RowResult result(sums, row.valid);
      if (lane == 0) {
        stats = result.stats(sums);
      }
    }
    __syncthreads();

    const Upstream up(p, b.grad_log_probs, b.grad_entropy, at_row);
    const Gradient<T, kSoftcap> of(row, stats, up);
    const int64_t id = p.token_ids[at_row];
    const bool chosen = up.g && up.g[0] != 0.0f && id >= row.begin && id < row.begin + row.size;
    if (threadIdx.x == 0 && chosen) {
      token = of.token(to_float(row.z[id]), (double)up.g[0], up, (double)p.log_probs[at_row]);
    }
    __syncthreads();  // the token's logit is read before anything is written over it
    if (!up.flows) {
      fill_zero<kBlock>(out, 0, b.row_length);
      __syncthreads();
      continue;
    }
    const T* const z = row.z + row.begin;
    T* const to = out + row.begin;
    const bool aligned = (uintptr_t)z % 16 == 0;
    const int64_t all = row.size / n;
    for (int64_t i = threadIdx.x; i < all; i += kBlock) {
      float x[n];
      if (i < stash_vectors) {
        Unpack<T>::raw(stash[i], x);
      } else if (aligned) {
        Unpack<T>::raw(__ldcs((const uint4*)z + i), x);
      } else {  // no more than its own elements: its neighbours may be written over already
        for (int j = 0; j < n; ++j) x[j] = to_float(z[i * n + j]);
      }
#pragma unroll
      for (int j = 0; j < n; ++j) x[j] = of.element(x[j]);
      put(to, i, pack<T>(x));
    }
    const int64_t tail = all * n + threadIdx.x;
    if (tail < row.size) to[tail] = from_float<T>(of.element(to_float(z[tail])));
    fill_zero<kBlock>(out, 0, row.begin);
    fill_zero<kBlock>(out, row.begin + row.size, b.row_length);
    __syncthreads();
    if (threadIdx.x == 0 && chosen) out[id] = from_float<T>(token);
    __syncthreads();  // the next row takes the shared memory
  }
}

}  // namespace

void token_log_probs_cuda_fused(const TokenLogProbsForward& p, const TokenLogProbsBackward& b,
                                CudaPlace place) {
  check_rows(p.num_rows);
  if (p.keep_indptr || p.ids_per_row != 1) {
    throw ValueError("token_ids: expected one id a row and a contiguous support, got " +
                     std::to_string(p.ids_per_row) + " ids or a KeepSet");
  }
  const DeviceGuard guard(place.device);
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    const int64_t most = (int64_t)max_shared_bytes(place.device) - 8192;  // the static arrays
    const int64_t whole = (p.support_end - p.support_begin) / kVector<T> * 16;
    const int64_t shared = whole < most ? whole : most / 16 * 16;
    const int64_t per_multiprocessor = shared * 2 <= most ? 2 : 1;
    const int64_t resident = multiprocessor_count(place.device) * per_multiprocessor;
    const unsigned grid = (unsigned)(p.num_rows < resident ? p.num_rows : resident);
    with_bool(p.softcap != 0, [&](auto softcap) {
      launch({dim3(grid), dim3(kBlock), (size_t)shared, (cudaStream_t)place.stream},
             token_log_probs_fused<T, decltype(softcap)::value>, p, b, shared / 16);
    });
  });
}

}  // namespace logpi
