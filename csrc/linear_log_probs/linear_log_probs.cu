// A tile of logits into the state of its rows on a GPU: the tile is read once, a block a row.
#include "core/dispatch.h"
#include "linear_log_probs/cuda.h"
#include "token_log_probs/token_log_probs.cuh"

namespace logpi {
namespace {

// A tile's sums into the row's, all of it in double: tiles may be many. The tile was summed against
// the row's top, or against its own where that is larger: `top`, as a value.
__device__ void merge_into(FoldState& s, const RowSums& tile, double top, double scale) {
  s.linear += tile.linear;
  if (tile.rest != tile.rest || !(tile.ref < INFINITY)) {
    s.top = NAN;
    return;
  }
  if (tile.at >= 0 && (double)tile.ref > s.top_logit) {
    const double own = s.at >= 0.0 ? 1.0 : 0.0, whole = own + s.rest;
    const double t = fmax((s.top - top) * scale, (double)kLowest), w = exp2(t);
    s.rest = whole * w + tile.rest;
    s.dot = (s.dot + whole * t) * w + tile.dot;
    s.square = (own + s.square) * w * w + tile.square;
    s.top = top;
    s.at = (double)tile.at;
    s.top_logit = (double)tile.ref;
    return;
  }
  const double own = tile.at >= 0 ? 1.0 : 0.0;  // another element that equals the top
  s.rest += own + tile.rest;
  s.dot += tile.dot;
  s.square += own + tile.square;
}

// The values of the ids that lie in the tile; one warp.
template <class T, bool kSoftcap>
__device__ void take_targets(const LinearLogProbsFold& p, int64_t n,
                             const DeviceRow<T, kSoftcap>& row) {
  for (int64_t k = threadIdx.x % kWarp; k < p.ids_per_row; k += kWarp) {
    const int64_t at = n * p.ids_per_row + k, id = p.token_ids[at];
    if (id < row.begin || id >= row.begin + row.size) continue;
    p.targets[at] = (double)row.squash(to_float(row.z[id]));
  }
}

// Every thread begins with the row's top so far as its reference: a function of the row alone, and
// after the first tiles hardly ever exceeded. A tile's row is soon read, and other blocks must
// cover its beginning and its end: four of them on a multiprocessor.
template <class T, Sums kSums, bool kSoftcap>
__global__ void __launch_bounds__(kThreads, kSoftcap ? 2 : 4)
    linear_log_probs_fold_rows(LinearLogProbsFold p) {
  __shared__ Partial partials[kMaxSegments * kWarps];
  const int64_t n = blockIdx.x;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (p.loss_mask && !p.loss_mask[n]) return;
  const double before = p.state[n].top_logit;
  const DeviceRow<T, kSoftcap> row(p, n);
  const Segments cut = Segments::of(row.size);
  const float seed = before > -INFINITY ? (float)before : warp_seed(row, p.vocab_size);
  const auto ignore = [](int64_t, const uint4&) {};
  for (int at = 0; at < cut.count; ++at) {
    const Partial sums = sum_segment<kSums>(row, cut, at, seed, threadIdx.x, ignore);
    if (lane == 0) partials[at * kWarps + warp] = sums;
  }
  __syncthreads();
  if (warp == 1) take_targets(p, n, row);
  if (warp != 0) return;
  FoldState state{};
  if (lane == 0) state = p.state[n];  // on its way while the warps' sums are merged
  const RowSums sums = merge_row(partials, cut.count * kWarps, row);
  if (lane != 0 || state.top != state.top) return;  // NaN already
  merge_into(state, sums, (double)row.squash(sums.ref), (double)row.scale);
  p.state[n] = state;
}

}  // namespace

void linear_log_probs_cuda_fold(const LinearLogProbsFold& p, CudaPlace place) {
  check_rows(p.num_rows);
  const DeviceGuard guard(place.device);
  const LaunchConfig config{dim3((unsigned)p.num_rows), dim3(kThreads), 0,
                            (cudaStream_t)place.stream};
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (p.softcap != 0) {  // fewer kernels: a softcap is rare
      launch(config, linear_log_probs_fold_rows<T, Sums::all, true>, p);
    } else if (p.all) {
      launch(config, linear_log_probs_fold_rows<T, Sums::all, false>, p);
    } else {
      launch(config, linear_log_probs_fold_rows<T, Sums::entropy, false>, p);
    }
  });
}

}  // namespace logpi
