// FlowRL's loss on a GPU. Forward: a block a piece of a sequence; the block that is done last has
// the loss and the metrics to make of their sums. Backward: a block a piece again.
#include <string>

#include "core/check.h"
#include "core/launch.cuh"
#include "core/online_softmax.cuh"
#include "flow_balance/cuda.h"
#include "flow_balance/sequence.h"

namespace logpi {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kPerThread = 4;  // loads of each input in flight
constexpr int64_t kPiece = kThreads * kPerThread;

// Of a sequence; by its padded length alone, or its bits would depend on the batch.
__host__ __device__ inline int64_t pieces_of(int64_t num_tokens) {
  return (num_tokens + kPiece - 1) / kPiece;
}

// The sum over a block of each of kCount doubles, in thread 0; always in the same order.
template <int kCount>
__device__ void block_sum(double (&x)[kCount]) {
  __shared__ double of_warps[kWarps][kCount];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int k = 0; k < kCount; ++k) {
    x[k] = warp_sum(x[k]);
    if (lane == 0) of_warps[warp][k] = x[k];
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int k = 0; k < kCount; ++k) {
    for (int w = 1; w < kWarps; ++w) x[k] += of_warps[w][k];
  }
}

// Piece `at` of sequence i, in thread 0.
__device__ FlowBalanceSums sum_piece(const FlowBalanceForward& p, int64_t i, int64_t at) {
  const bool* const mask = p.loss_mask + i * p.mask_stride;
  const float* const log_probs = p.log_probs + i * p.log_probs_stride;
  const float* const ref = p.ref_log_probs + i * p.ref_stride;
  const float* const old = p.old_log_probs + i * p.old_stride;
  double sums[4] = {};
  // Loaded whether masked or not: none of the loads waits for the mask's.
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const int64_t t = at * kPiece + k * kThreads + threadIdx.x;
    if (t >= p.num_tokens) break;
    const float x = log_probs[t], y = ref[t], z = old[t];
    if (!mask[t]) continue;
    sums[0] += 1.0;
    sums[1] += (double)x;
    sums[2] += (double)y;
    sums[3] += (double)z;
  }
  block_sum(sums);
  return {sums[0], sums[1], sums[2], sums[3]};
}

// The sums of sequence i in each of a group of `width` lanes, which share its pieces. What other
// blocks wrote is read from L2: an L1 is not told of it.
__device__ FlowBalanceSums sum_pieces(const FlowBalanceSums* pieces, int64_t count, bool exists,
                                      int width) {
  FlowBalanceSums out{};
  for (int64_t at = threadIdx.x % width; exists && at < count; at += width) {
    const FlowBalanceSums* const one = pieces + at;
    out.tokens += __ldcg(&one->tokens);
    out.log_probs += __ldcg(&one->log_probs);
    out.ref_log_probs += __ldcg(&one->ref_log_probs);
    out.old_log_probs += __ldcg(&one->old_log_probs);
  }
  for (int step = width / 2; step > 0; step /= 2) {
    out.tokens += __shfl_xor_sync(kFullWarp, out.tokens, step);
    out.log_probs += __shfl_xor_sync(kFullWarp, out.log_probs, step);
    out.ref_log_probs += __shfl_xor_sync(kFullWarp, out.ref_log_probs, step);
    out.old_log_probs += __shfl_xor_sync(kFullWarp, out.old_log_probs, step);
  }
  return out;
}

// Loss, metrics and slopes, by one block.
__device__ void finish(const FlowBalanceForward& p, const FlowBalanceSums* pieces, int width) {
  const int64_t count = pieces_of(p.num_tokens);
  const double divisor = divisor_of(p);
  FlowBalanceTotals totals{};
  for (int64_t first = 0; first < p.num_sequences; first += kThreads / width) {
    const int64_t i = first + threadIdx.x / width;
    const bool exists = i < p.num_sequences;
    const FlowBalanceSums sums = sum_pieces(pieces + i * count, count, exists, width);
    if (exists && threadIdx.x % width == 0) p.slopes[i] = add_sequence(p, i, sums, divisor, totals);
  }
  double all[kFlowBalanceTotals] = {
      totals.tokens, totals.log_probs, totals.ref_log_probs, totals.old_log_probs, totals.loss,
      totals.log_z,  totals.reward,    totals.residual,      totals.weight,        totals.cut};
  block_sum(all);
  if (threadIdx.x != 0) return;
  write_results(p,
                {all[0], all[1], all[2], all[3], all[4], all[5], all[6], all[7], all[8], all[9]});
}

// `ticket` counts blocks that have written their piece.
__global__ void __launch_bounds__(kThreads)
    flow_balance_loss(FlowBalanceForward p, FlowBalanceSums* pieces, unsigned* ticket, int width) {
  __shared__ bool last;
  const int64_t count = pieces_of(p.num_tokens);
  if (count > 0 && p.num_sequences > 0) {
    const FlowBalanceSums sums = sum_piece(p, blockIdx.x / count, blockIdx.x % count);
    if (threadIdx.x == 0) pieces[blockIdx.x] = sums;
  }
  if (threadIdx.x == 0) {
    __threadfence();  // the piece is seen by whoever sees the ticket
    last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (last) finish(p, pieces, width);
}

__global__ void __launch_bounds__(kThreads)
    flow_balance_gradient(FlowBalanceBackward p, int64_t count) {
  const int64_t i = blockIdx.x / count, at = blockIdx.x % count;
  const double upstream = (double)*p.grad_loss;
  const FlowBalanceSlopes slopes = p.slopes[i];
  if (at == 0 && threadIdx.x == 0 && p.grad_log_z) {
    p.grad_log_z[i] = (float)(slopes.of_log_z * upstream);
  }
  if (!p.grad_log_probs) return;
  const float of_token = (float)(slopes.of_token * upstream);
  const bool* const mask = p.loss_mask + i * p.mask_stride;
  float* const out = p.grad_log_probs + i * p.num_tokens;
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const int64_t t = at * kPiece + k * kThreads + threadIdx.x;
    if (t < p.num_tokens) out[t] = mask[t] ? of_token : 0.0f;
  }
}

// Lanes that share the pieces of a sequence: as many as there are, up to a warp.
int lanes_for(int64_t pieces) {
  int width = 1;
  while (width < kWarp && width < pieces) width *= 2;
  return width;
}

unsigned blocks(int64_t count) {
  if (count > INT32_MAX) {
    throw ValueError("log_probs: expected at most 2^31 - 1 pieces of " + std::to_string(kPiece) +
                     " tokens, got " + std::to_string(count));
  }
  return (unsigned)count;
}

}  // namespace

int64_t flow_balance_cuda_scratch(int64_t num_sequences, int64_t num_tokens) {
  return num_sequences * pieces_of(num_tokens) * (int64_t)sizeof(FlowBalanceSums) +
         (int64_t)sizeof(double);
}

void flow_balance_cuda_forward(const FlowBalanceForward& p, void* scratch, FlowBalancePlace place) {
  const DeviceGuard guard(place.device);
  const cudaStream_t stream = (cudaStream_t)place.stream;
  const int64_t count = pieces_of(p.num_tokens), all = p.num_sequences * count;
  FlowBalanceSums* const pieces = (FlowBalanceSums*)scratch;
  unsigned* const ticket = (unsigned*)(pieces + all);
  clear_async(ticket, sizeof *ticket, stream);
  const LaunchConfig config{dim3(blocks(all > 0 ? all : 1)), dim3(kThreads), 0, stream};
  launch(config, flow_balance_loss, p, pieces, ticket, lanes_for(count));
}

void flow_balance_cuda_backward(const FlowBalanceBackward& p, FlowBalancePlace place) {
  const bool of_tokens = p.grad_log_probs != nullptr && p.num_tokens > 0;
  const int64_t count = of_tokens ? pieces_of(p.num_tokens) : 1;
  if (p.num_sequences == 0) return;
  const DeviceGuard guard(place.device);
  const LaunchConfig config{dim3(blocks(p.num_sequences * count)), dim3(kThreads), 0,
                            (cudaStream_t)place.stream};
  launch(config, flow_balance_gradient, p, count);
}

}  // namespace logpi
