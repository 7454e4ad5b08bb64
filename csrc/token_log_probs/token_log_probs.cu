// Forward on a GPU: the logits are read once, a block a row; where there are fewer rows than blocks
// that fit on the machine, a block a segment and a second, small kernel that merges them.
#include "token_log_probs/token_log_probs.cuh"

#include "core/check.h"
#include "token_log_probs/cuda.h"
#include "core/dispatch.h"

namespace logpi {
namespace {

constexpr int64_t kFewRows = 264;  // two blocks for each multiprocessor of an H100
constexpr int kMaxPartials = kMaxSegments * kWarps;

template <class T, bool kSoftcap>
__device__ Segments cut_of(const TokenLogProbsForward& p, const DeviceRow<T, kSoftcap>& row) {
  return Segments::of(row.kept ? row.size : p.support_end - p.support_begin);
}

template <class T, Sums kSums, bool kSoftcap>
__global__ void __launch_bounds__(kThreads, kSoftcap ? 2 : 3)
    token_log_probs_rows(TokenLogProbsForward p) {
  __shared__ Partial partials[kMaxPartials];
  const int64_t n = blockIdx.x;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (p.loss_mask && !p.loss_mask[n]) {
    if (warp == 0) write_masked(p, n);
    return;
  }
  const DeviceRow<T, kSoftcap> row(p, n);
  const Segments cut = cut_of(p, row);
  const float seed = warp_seed(row, p.vocab_size);
  const auto ignore = [](int64_t, const uint4&) {};
  for (int at = 0; at < cut.count; ++at) {
    const Partial sums = sum_segment<kSums>(row, cut, at, seed, threadIdx.x, ignore);
    if (lane == 0) partials[at * kWarps + warp] = sums;
  }
  __syncthreads();
  if (warp == 0) finish(p, n, row, merge_row(partials, cut.count * kWarps, row));
}

template <class T, Sums kSums, bool kSoftcap>
__global__ void __launch_bounds__(kThreads, kSoftcap ? 2 : 3)
    token_log_probs_segments(TokenLogProbsForward p, Partial* partials) {
  const Segments cut = Segments::of(p.support_end - p.support_begin);
  const int64_t n = blockIdx.x / cut.count;
  const int at = blockIdx.x % cut.count, warp = threadIdx.x / kWarp;
  if (p.loss_mask && !p.loss_mask[n]) return;
  const DeviceRow<T, kSoftcap> row(p, n);
  const float seed = warp_seed(row, p.vocab_size);
  const auto ignore = [](int64_t, const uint4&) {};
  const Partial sums = sum_segment<kSums>(row, cut, at, seed, threadIdx.x, ignore);
  if (threadIdx.x % kWarp == 0) partials[(int64_t)blockIdx.x * kWarps + warp] = sums;
}

template <class T, bool kSoftcap>
__global__ void __launch_bounds__(kWarp)
    token_log_probs_merge(TokenLogProbsForward p, const Partial* partials) {
  const int64_t n = blockIdx.x;
  if (p.loss_mask && !p.loss_mask[n]) {
    write_masked(p, n);
    return;
  }
  const DeviceRow<T, kSoftcap> row(p, n);
  const int count = Segments::of(row.size).count * kWarps;
  finish(p, n, row, merge_row(partials + n * count, count, row));
}

template <class T, bool kSoftcap>
__global__ void __launch_bounds__(kThreads, kSoftcap ? 2 : 3)
    token_log_probs_kept(TokenLogProbsForward p) {
  __shared__ Partial partials[kMaxPartials];
  const int64_t n = blockIdx.x;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (p.loss_mask && !p.loss_mask[n]) {
    if (warp == 0) write_masked(p, n);
    return;
  }
  const DeviceRow<T, kSoftcap> row(p, n);
  const Segments cut = cut_of(p, row);
  const float seed = warp_seed(row, p.vocab_size);
  for (int at = 0; at < cut.count; ++at) {
    const Partial sums = sum_kept<Sums::all>(row, cut, at, seed, p.vocab_size);
    if (lane == 0) partials[at * kWarps + warp] = sums;
  }
  __syncthreads();
  if (warp == 0) finish(p, n, row, merge_row(partials, cut.count * kWarps, row));
}

template <class T, Sums kSums, bool kSoftcap>
void contiguous(const TokenLogProbsForward& p, void* scratch, cudaStream_t stream) {
  const unsigned rows = (unsigned)p.num_rows;
  if (!scratch) {
    launch({dim3(rows), dim3(kThreads), 0, stream}, token_log_probs_rows<T, kSums, kSoftcap>, p);
    return;
  }
  const Segments cut = Segments::of(p.support_end - p.support_begin);
  Partial* const partials = (Partial*)scratch;
  launch({dim3(rows * cut.count), dim3(kThreads), 0, stream},
         token_log_probs_segments<T, kSums, kSoftcap>, p, partials);
  launch({dim3(rows), dim3(kWarp), 0, stream}, token_log_probs_merge<T, kSoftcap>, p,
         (const Partial*)partials);
}

}  // namespace

int64_t token_log_probs_cuda_forward_scratch(int64_t num_rows, int64_t support_size, bool kept) {
  const int64_t segments = Segments::of(support_size).count;
  const bool split = !kept && num_rows <= kFewRows && segments > 1;
  return split ? num_rows * segments * kWarps * (int64_t)sizeof(Partial) : 0;
}

void token_log_probs_cuda_forward(const TokenLogProbsForward& p, void* scratch, CudaPlace place) {
  check_rows(p.num_rows);
  const DeviceGuard guard(place.device);
  const cudaStream_t stream = (cudaStream_t)place.stream;
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    with_bool(p.softcap != 0, [&](auto softcap) {
      constexpr bool kSoftcap = decltype(softcap)::value;
      if (p.keep_indptr) {
        launch({dim3((unsigned)p.num_rows), dim3(kThreads), 0, stream},
               token_log_probs_kept<T, kSoftcap>, p);
      } else if (kSoftcap || p.collision || p.mean_logit) {  // fewer kernels: a softcap is rare
        contiguous<T, Sums::all, kSoftcap>(p, scratch, stream);
      } else if (p.entropy || p.stats) {
        contiguous<T, Sums::entropy, false>(p, scratch, stream);
      } else {
        contiguous<T, Sums::lse, false>(p, scratch, stream);
      }
    });
  });
}

}  // namespace logpi
