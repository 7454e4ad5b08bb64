// Barriers and warp collectives that do not come together.
#include "core/launch.cuh"

#include "case.h"

using logpi::launch;

namespace {

constexpr unsigned kAll = 0xffffffffu;

__global__ void half_a_barrier() {
  if (threadIdx.x < 40) __syncthreads();  // FAULT divergent_barrier
}

__global__ void one_barrier_each() {
  if (threadIdx.x < 16) {
    __syncthreads();  // FAULT two_barriers
  } else {
    __syncthreads();  // FAULT two_barriers
  }
}

__global__ void return_before_barrier() {
  if (threadIdx.x == 7) return;
  __syncthreads();  // FAULT barrier_after_return
}

__global__ void lane_stays_away(int* out) {
  int sum = (int)threadIdx.x;
  if (threadIdx.x != 3) {
    sum += __shfl_xor_sync(kAll, sum, 1);  // FAULT shuffle_without_a_lane
  }
  out[threadIdx.x] = sum;
}

__global__ void shuffle_meets_vote(int* out) {
  const int mine = (int)threadIdx.x;
  if (threadIdx.x < 16) {
    out[mine] = __shfl_xor_sync(kAll, mine, 1);  // FAULT two_operations
  } else {
    out[mine] = __any_sync(kAll, mine);  // FAULT two_operations
  }
}

__global__ void read_outside_mask(int* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_sync(0xffffu, (int)threadIdx.x, 20);  // FAULT lane_outside_mask
  }
}

__global__ void call_outside_mask(int* out) {
  out[threadIdx.x] = __shfl_sync(0xffffu, (int)threadIdx.x, 2);  // FAULT caller_outside_mask
}

__global__ void half_a_warp_shuffles(int* out) {
  if (threadIdx.x / 16 == 2) {
    out[threadIdx.x] = __shfl_sync(kAll, 1, 0);  // FAULT barrier_against_shuffle
  }
  __syncthreads();  // FAULT barrier_against_shuffle
}

__global__ void identity(int* out) { out[threadIdx.x] = (int)threadIdx.x; }

}  // namespace

CASE(divergent_barrier) {
  launch({2, 64, 0, nullptr}, half_a_barrier);
  return "silent";
}
CASE(two_barriers) {
  launch({1, 32, 0, nullptr}, one_barrier_each);
  return "silent";
}
CASE(barrier_after_return) {
  launch({1, 32, 0, nullptr}, return_before_barrier);
  return "silent";
}
CASE(shuffle_without_a_lane) {
  std::vector<int> out(64);
  launch({1, 64, 0, nullptr}, lane_stays_away, out.data());
  return "silent";
}
CASE(two_operations) {
  std::vector<int> out(32);
  launch({1, 32, 0, nullptr}, shuffle_meets_vote, out.data());
  return "silent";
}
CASE(lane_outside_mask) {
  std::vector<int> out(32);
  launch({1, 32, 0, nullptr}, read_outside_mask, out.data());
  return "silent";
}
CASE(caller_outside_mask) {
  std::vector<int> out(32);
  launch({1, 32, 0, nullptr}, call_outside_mask, out.data());
  return "silent";
}
CASE(barrier_against_shuffle) {
  std::vector<int> out(64);
  launch({1, 64, 0, nullptr}, half_a_warp_shuffles, out.data());
  return "silent";
}
CASE(no_blocks) {
  launch({0, 32, 0, nullptr}, half_a_barrier);  // FAULT no_blocks
  return "silent";
}
CASE(too_many_threads) {
  launch({1, dim3(64, 17), 0, nullptr}, half_a_barrier);  // FAULT too_many_threads
  return "silent";
}
CASE(too_much_shared) {
  launch({1, 32, 1 << 20, nullptr}, half_a_barrier);  // FAULT too_much_shared
  return "silent";
}

// The threads that a report leaves where they stand are in nobody's way.
CASE(launch_after_a_fault) {
  std::vector<int> out(64), expected(64);
  for (int i = 0; i < 64; ++i) expected[i] = i;
  for (int round = 0; round < 3; ++round) {
    try {
      launch({1, 64, 0, nullptr}, lane_stays_away, out.data());
      return "no fault";
    } catch (const std::exception&) {
    }
    launch({1, 64, 0, nullptr}, identity, out.data());
    if (compare(out, expected) != "exact") return compare(out, expected);
  }
  return "exact";
}
