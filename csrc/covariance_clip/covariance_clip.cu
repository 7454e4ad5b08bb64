// covariance_clip on a GPU: a block a tile of tokens, a launch a phase. All that blocks add up are
// integers, so no order shows; what depends on order, ranks and ties, is counted by tile and then
// added up by whoever comes after.
#include "core/check.h"
#include "core/launch.cuh"
#include "core/philox.h"
#include "covariance_clip/cuda.h"

namespace logpi {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kEach = kTile / kThreads;  // tokens of a thread, kThreads apart
constexpr int kBins = kDigits / kThreads;

__device__ int64_t token_of(int each) {
  return (int64_t)blockIdx.x * kTile + each * kThreads + threadIdx.x;
}

__device__ int warp_sum(int x) {
  for (int step = kWarp / 2; step; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

// The sum of x over the block, to every thread.
__device__ int block_sum(int x) {
  __shared__ int of_warp[kWarps];
  x = warp_sum(x);
  __syncthreads();  // who came before has read
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = x;
  __syncthreads();
  int sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += of_warp[w];
  return sum;
}

// What the tiles before this one have counted.
__device__ int counted_before(const int32_t* counts) {
  int sum = 0;
  for (unsigned i = threadIdx.x; i < blockIdx.x; i += kThreads) sum += counts[i];
  return block_sum(sum);
}

// Of the tokens of the tile that have a flag, how many lie before each of a thread's.
__device__ void ranks(const bool (&flags)[kEach], int (&out)[kEach]) {
  __shared__ int before[kEach * kWarps + 1];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int e = 0; e < kEach; ++e) {
    const unsigned all = __ballot_sync(~0u, flags[e]);
    out[e] = __popc(all & ((1u << lane) - 1));
    if (lane == 0) before[e * kWarps + warp + 1] = __popc(all);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    before[0] = 0;
    for (int i = 0; i < kEach * kWarps; ++i) before[i + 1] += before[i];
  }
  __syncthreads();
  for (int e = 0; e < kEach; ++e) out[e] += before[e * kWarps + warp];
}

// ---- sums
// -----------------------------------------------------------------------------------------

// A tile's exact sum in halves of limbs, 16 bits and 16: atomics of 32 bits are the fast ones.
struct SharedSum {
  int low[kLimbs], high[kLimbs], above, below;

  __device__ void clear() {
    for (int i = threadIdx.x; i < (int)(sizeof(*this) / 4); i += kThreads) ((int*)this)[i] = 0;
  }
  __device__ void add(float x) {
    const uint32_t bits = __float_as_uint(x);
    if ((bits << 1) == 0) return;
    const Addend one = addend(bits);
    if (one.limb == kLimbs) {
      if (is_above(bits)) atomicAdd(&above, 1);
      if (is_below(bits)) atomicAdd(&below, 1);
      return;
    }
    atomicAdd(&low[one.limb], one.value & 0xffff);
    atomicAdd(&high[one.limb], one.value >> 16);
  }
  __device__ void add_to(ExactSum& to, int i) const {
    int64_t* const at = i < kLimbs ? &to.limbs[i] : i == kLimbs ? &to.above : &to.below;
    const int64_t x = i < kLimbs    ? (int64_t)low[i] + (int64_t)high[i] * 65536
                      : i == kLimbs ? above
                                    : below;
    if (x) atomicAdd((unsigned long long*)at, (unsigned long long)x);
  }
};

__global__ void __launch_bounds__(kThreads) covariance_clip_sums(CovarianceClip p) {
  __shared__ SharedSum sums[2];
  sums[0].clear();
  sums[1].clear();
  __syncthreads();
  int count = 0;
  for (int e = 0; e < kEach; ++e) {
    const int64_t i = token_of(e);
    if (i >= p.num_tokens || !p.loss_mask[i]) continue;
    ++count;
    sums[0].add(p.log_probs[i]);
    sums[1].add(p.advantages[i]);
  }
  count = block_sum(count);
  const int at = threadIdx.x;
  if (at < 2 * (kLimbs + 2)) {
    const bool second = at >= kLimbs + 2;
    ExactSum& to = second ? p.head->advantages : p.head->log_probs;
    sums[second].add_to(to, second ? at - kLimbs - 2 : at);
  }
  if (threadIdx.x == 0) {
    p.counts[blockIdx.x] = count;
    atomicAdd((unsigned long long*)&p.head->count, (unsigned long long)count);
  }
}

// ---- keys
// -----------------------------------------------------------------------------------------

// Adds a block's histogram to the one of all; clears it beforehand.
struct SharedHistogram {
  int bins[kDigits];

  __device__ void clear() {
    for (int i = threadIdx.x; i < kDigits; i += kThreads) bins[i] = 0;
    __syncthreads();
  }
  __device__ void add_to(int32_t* to) {
    __syncthreads();
    for (int i = threadIdx.x; i < kDigits; i += kThreads) {
      if (bins[i]) atomicAdd(&to[i], bins[i]);
    }
  }
};

__global__ void __launch_bounds__(kThreads) covariance_clip_keys(CovarianceClip p) {
  __shared__ float means[2];
  __shared__ SharedHistogram histogram;
  if (threadIdx.x % kWarp == 0 && threadIdx.x < 2 * kWarp) {
    const ExactSum& sum = threadIdx.x ? p.head->advantages : p.head->log_probs;
    means[threadIdx.x / kWarp] = mean_of(sum, p.head->count);
  }
  histogram.clear();  // and all wait

  float c[kEach];
  bool valid[kEach];
  for (int e = 0; e < kEach; ++e) {
    const int64_t i = token_of(e);
    valid[e] = i < p.num_tokens && p.loss_mask[i];
    c[e] = valid[e] ? (p.advantages[i] - means[1]) * (p.log_probs[i] - means[0]) : 0.0f;
  }
  if (p.rule == CovarianceRule::covariances) {
    for (int e = 0; e < kEach; ++e) {
      if (token_of(e) < p.num_tokens) ((float*)p.out)[token_of(e)] = c[e];
    }
    return;
  }
  int rank[kEach];
  int64_t first = 0;
  if (p.rule == CovarianceRule::clip) {
    first = p.head->first + counted_before(p.counts);
    ranks(valid, rank);
  }
  const uint64_t step = (uint64_t)(p.step_at ? *p.step_at : p.step);
  for (int e = 0; e < kEach; ++e) {
    const int64_t i = token_of(e);
    uint32_t key = kNobody;
    if (valid[e] && p.rule == CovarianceRule::kl) {
      key = key_of(__float_as_uint(c[e]));
    } else if (valid[e] && c[e] > p.lower && c[e] < p.upper && !(p.exclude && p.exclude[i])) {
      key = random_word(p.seed, step, (uint64_t)(first + rank[e])) >> 1;
    }
    if (i < p.num_tokens) p.keys[i] = key;
    if (key != kNobody) atomicAdd(&histogram.bins[key >> 21], 1);
  }
  histogram.add_to(p.head->histogram[0]);
}

// ---- the radix select
// -----------------------------------------------------------------------------

// The next digit of the last key taken, from the histogram of those that begin like it.
__device__ Selected next(const CovarianceClip& p, int at) {
  __shared__ Selected found;
  __shared__ int before_warp[kWarps + 1];
  const int digits = at == 2 ? 1024 : kDigits, each = digits / kThreads;
  const int32_t* const histogram = p.head->histogram[at] + threadIdx.x * each;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  int bins[kBins], sum = 0;
#pragma unroll
  for (int i = 0; i < kBins; ++i) {
    bins[i] = i < each ? histogram[i] : 0;
    sum += bins[i];
  }
  int upto = sum;  // and with the threads before
  for (int step = 1; step < kWarp; step *= 2) {
    const int other = __shfl_up_sync(~0u, upto, step);
    if (lane >= step) upto += other;
  }
  if (lane == kWarp - 1) before_warp[warp + 1] = upto;
  __syncthreads();
  if (threadIdx.x == 0) {
    before_warp[0] = 0;
    for (int w = 0; w < kWarps; ++w) before_warp[w + 1] += before_warp[w];
    found = {at ? p.head->selected[at].prefix * digits : 0, 0};  // where none is wanted
  }
  __syncthreads();
  Selected last = p.head->selected[at];
  if (at == 0) {
    const int64_t wanted = wanted_of(p.head->count, p.fraction), all = before_warp[kWarps];
    last = {0, wanted < all ? wanted : all};
  }
  int64_t below = before_warp[warp] + upto - sum;
#pragma unroll
  for (int i = 0; i < kBins; ++i) {
    if (below < last.wanted && last.wanted <= below + bins[i]) {  // at one bin of one thread
      found = {last.prefix * digits + threadIdx.x * each + i, last.wanted - below};
    }
    below += bins[i];
  }
  __syncthreads();
  if (blockIdx.x == 0 && threadIdx.x == 0) p.head->selected[at + 1] = found;
  return found;
}

__global__ void __launch_bounds__(kThreads) covariance_clip_digit(CovarianceClip p, int at) {
  __shared__ SharedHistogram histogram;
  histogram.clear();
  const int64_t prefix = next(p, at).prefix;
  const int shift = at == 0 ? 21 : 10;
  for (int e = 0; e < kEach; ++e) {
    const int64_t i = token_of(e);
    const uint32_t key = i < p.num_tokens ? p.keys[i] : kNobody;
    if (key == kNobody || key >> shift != prefix) continue;
    atomicAdd(&histogram.bins[at == 0 ? key >> 10 & 2047 : key & 1023], 1);
  }
  histogram.add_to(p.head->histogram[at + 1]);
}

__global__ void __launch_bounds__(kThreads) covariance_clip_ties(CovarianceClip p) {
  const int64_t last = next(p, 2).prefix;
  int ties = 0;
  for (int e = 0; e < kEach; ++e) {
    const int64_t i = token_of(e);
    ties += i < p.num_tokens && p.keys[i] == last;
  }
  ties = block_sum(ties);
  if (threadIdx.x == 0) {
    p.counts[gridDim.x + blockIdx.x] = ties;
    if (ties) atomicAdd((unsigned long long*)&p.head->ties, (unsigned long long)ties);
  }
}

__global__ void __launch_bounds__(kThreads) covariance_clip_mark(CovarianceClip p) {
  const Selected last = p.head->selected[3];
  const int64_t before = p.head->first_tie + counted_before(p.counts + gridDim.x);
  uint32_t keys[kEach];
  bool ties[kEach];
  int rank[kEach];
  for (int e = 0; e < kEach; ++e) {
    const int64_t i = token_of(e);
    keys[e] = i < p.num_tokens ? p.keys[i] : kNobody;
    ties[e] = keys[e] == last.prefix;
  }
  ranks(ties, rank);
  for (int e = 0; e < kEach; ++e) {
    const int64_t i = token_of(e);
    const bool taken = keys[e] < last.prefix || (ties[e] && before + rank[e] < last.wanted);
    if (i < p.num_tokens) ((bool*)p.out)[i] = taken;
  }
}

}  // namespace

void covariance_clip_cuda(const CovarianceClip& p, int from, int to, int device, void* stream) {
  const DeviceGuard guard(device);
  const unsigned tiles = (unsigned)((p.num_tokens + kTile - 1) / kTile);
  const LaunchConfig config{dim3(tiles), dim3(kThreads), 0, (cudaStream_t)stream};
  for (int phase = from; phase < to; ++phase) {
    switch (phase) {
      case kSums:
        clear_async(p.head, head_bytes(p), (cudaStream_t)stream);
        launch(config, covariance_clip_sums, p);
        break;
      case kKeys:
        launch(config, covariance_clip_keys, p);
        break;
      case kTies:
        launch(config, covariance_clip_ties, p);
        break;
      case kMark:
        launch(config, covariance_clip_mark, p);
        break;
      default:
        launch(config, covariance_clip_digit, p, phase - kSecond);
    }
  }
}

}  // namespace logpi
