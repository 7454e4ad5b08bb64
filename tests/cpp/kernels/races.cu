// Threads that do not wait for one another. Whatever order the fibers run in, most of these give
// the right answer: TSan is what finds them.
#include "core/launch.cuh"

#include "case.h"

using logpi::launch;

namespace {

__global__ void no_barrier(int* out) {
  __shared__ int x[64];
  x[threadIdx.x] = (int)threadIdx.x;              // FAULT missing_barrier
  out[threadIdx.x] = x[(threadIdx.x + 33) % 64];  // FAULT missing_barrier
}

__global__ void no_second_barrier(int* out, int rounds) {
  __shared__ int x;
  int sum = 0;
  for (int i = 0; i < rounds; ++i) {
    if (threadIdx.x == 0) x = i;  // FAULT missing_second_barrier
    __syncthreads();
    sum += x;  // FAULT missing_second_barrier
  }
  out[threadIdx.x] = sum;
}

__global__ void shuffle_for_fence(int* out) {
  __shared__ int x[32];
  x[threadIdx.x] = (int)threadIdx.x;  // FAULT shuffle_as_fence
  const int from = __shfl_xor_sync(0xffffffffu, (int)threadIdx.x, 1);
  out[threadIdx.x] = x[from];  // FAULT shuffle_as_fence
}

__global__ void wrong_syncwarp(int* out) {
  __shared__ int x[64];
  x[threadIdx.x] = (int)threadIdx.x;  // FAULT syncwarp_across_warps
  __syncwarp();
  out[threadIdx.x] = x[(threadIdx.x + 32) % 64];  // FAULT syncwarp_across_warps
}

__global__ void plain_add(int* total) {
  *total += 1;  // FAULT plain_add
}

__global__ void all_write(int* out) {
  *out = (int)threadIdx.x;  // FAULT global_write_race
}

__global__ void flag_alone(int* data, int* flag, int* out) {
  if (threadIdx.x == 0) {
    *data = 5;  // FAULT flag_without_fence
    atomicExch(flag, 1);
  } else if (atomicCAS(flag, 1, 2) == 1) {
    *out = *data;  // FAULT flag_without_fence
  }
}

__global__ void halves_apart(int* out) {
  __shared__ int x;
  const unsigned mask = threadIdx.x < 16 ? 0xffffu : 0xffff0000u;
  if (threadIdx.x == 0) x = 1;  // FAULT syncwarp_of_half
  __syncwarp(mask);
  if (threadIdx.x == 16) *out = x;  // FAULT syncwarp_of_half
  __syncwarp(mask);
}

__global__ void blocks_write_one_place(int* out) {
  if (threadIdx.x == 0) *out = (int)blockIdx.x;  // FAULT blocks_write_one_address
}

// A pair of blocks shares a row; the second takes for granted that the first is done.
__global__ void reads_its_neighbour(int* parts, int* out) {
  __shared__ int mine;
  if (threadIdx.x == 0) mine = (int)blockIdx.x;
  __syncthreads();
  if (threadIdx.x == 31) parts[blockIdx.x] = mine;  // FAULT block_trusts_its_neighbour
  __syncthreads();
  if (threadIdx.x == 5 && blockIdx.x % 2 == 1) {
    out[blockIdx.x / 2] = parts[blockIdx.x - 1] + mine;  // FAULT block_trusts_its_neighbour
  }
}

// The last block adds up what the others have left, as controls.cu does, but without a fence.
__global__ void last_block_without_fence(int* parts, unsigned* tickets, int* out) {
  if (threadIdx.x != 0) return;
  parts[blockIdx.x] = 1;  // FAULT last_block_without_fence
  if (atomicAdd(tickets, 1) != gridDim.x - 1) return;
  int sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) {
    sum += parts[i];  // FAULT last_block_without_fence
  }
  *out = sum;
}

}  // namespace

CASE(missing_barrier) {
  std::vector<int> out(64);
  launch({1, 64, 0, nullptr}, no_barrier, out.data());
  return "silent";
}
CASE(missing_second_barrier) {
  std::vector<int> out(64);
  launch({1, 64, 0, nullptr}, no_second_barrier, out.data(), 5);
  return "silent";
}
CASE(shuffle_as_fence) {
  std::vector<int> out(32);
  launch({1, 32, 0, nullptr}, shuffle_for_fence, out.data());
  return "silent";
}
CASE(syncwarp_across_warps) {
  std::vector<int> out(64);
  launch({1, 64, 0, nullptr}, wrong_syncwarp, out.data());
  return "silent";
}
CASE(plain_add) {
  int total = 0;
  launch({1, 32, 0, nullptr}, plain_add, &total);
  return "silent";
}
CASE(global_write_race) {
  int out = 0;
  launch({1, 32, 0, nullptr}, all_write, &out);
  return "silent";
}
CASE(flag_without_fence) {
  int data = 0, flag = 0, out = 0;
  launch({1, 32, 0, nullptr}, flag_alone, &data, &flag, &out);
  return "silent";
}
CASE(syncwarp_of_half) {
  int out = 0;
  launch({1, 32, 0, nullptr}, halves_apart, &out);
  return "silent";
}
CASE(blocks_write_one_address) {
  int out = 0;
  launch({3, 32, 0, nullptr}, blocks_write_one_place, &out);
  return "silent";
}
CASE(block_trusts_its_neighbour) {
  std::vector<int> parts(4), out(2);
  launch({4, 32, 0, nullptr}, reads_its_neighbour, parts.data(), out.data());
  return "silent";
}
CASE(last_block_without_fence) {
  std::vector<int> parts(4), out(1);
  unsigned tickets = 0;
  launch({4, 32, 0, nullptr}, last_block_without_fence, parts.data(), &tickets, out.data());
  return "silent";
}
