// Correct kernels of every kind: no check may speak, and the results are exact.
#include "core/launch.cuh"

#include <math.h>

#include "case.h"

using logpi::dynamic_shared;
using logpi::launch;

namespace {

constexpr unsigned kAll = 0xffffffffu;

template <class T, class F>
__device__ T warp_fold(T x, const F& fold) {
  for (int step = 16; step > 0; step /= 2) x = fold(x, __shfl_xor_sync(kAll, x, step));
  return x;
}

// Reused in a loop: its second barrier keeps a fast warp out of the next round.
template <class T, class F>
__device__ T block_fold(T x, const F& fold) {
  __shared__ T parts[32];
  const int warps = (int)blockDim.x / 32;
  x = warp_fold(x, fold);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  x = parts[0];
  for (int i = 1; i < warps; ++i) x = fold(x, parts[i]);
  __syncthreads();
  return x;
}

__global__ void sum_rows(const int64_t* in, int64_t* out, int columns) {
  for (int row = (int)blockIdx.x; row < 9; row += (int)gridDim.x) {
    int64_t sum = 0;
    for (int i = (int)threadIdx.x; i < columns; i += (int)blockDim.x) sum += in[row * columns + i];
    sum = block_fold(sum, [](int64_t a, int64_t b) { return a + b; });
    if (threadIdx.x == 0) out[row] = sum;
  }
}

struct Pair {
  float top, sum;
};
__device__ Pair merge(Pair a, Pair b) {
  const float top = fmaxf(a.top, b.top);
  return {top, a.sum * exp2f(a.top - top) + b.sum * exp2f(b.top - top)};
}

// 16-byte loads between a head and a tail of single elements.
__global__ void log_sum_exp2(const float* in, float* out, int size) {
  Pair mine = {-1e30f, 0.0f};
  const auto take = [&](float x) { mine = merge(mine, {x, 1.0f}); };
  int head = (int)(-(uintptr_t)in / 4 % 4);
  head = head < size ? head : size;
  const int vectors = (size - head) / 4, tail = head + vectors * 4, me = (int)threadIdx.x;
  if (me < head) take(in[me]);
  for (int i = me; i < vectors; i += (int)blockDim.x) {
    const float4 x = __ldcs((const float4*)(in + head) + i);
    take(x.x), take(x.y), take(x.z), take(x.w);
  }
  if (tail + me < size) take(in[tail + me]);
  mine = block_fold(mine, merge);
  if (me == 0) *out = mine.top + log2f(mine.sum);
}

__global__ void histogram(const int* in, int size, int* out) {
  int* counts = dynamic_shared<int>();
  for (int i = (int)threadIdx.x; i < 16; i += (int)blockDim.x) counts[i] = 0;
  __syncthreads();
  for (int i = (int)threadIdx.x; i < size; i += (int)blockDim.x) atomicAdd(&counts[in[i]], 1);
  __syncthreads();
  for (int i = (int)threadIdx.x; i < 16; i += (int)blockDim.x) atomicAdd(&out[i], counts[i]);
}

// The last block to finish sums what all have left.
__global__ void last_block_sums(int* parts, unsigned* tickets, int* out) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = (int)blockIdx.x + 1;
    __threadfence();
    last = atomicAdd(tickets, 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    int sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) sum += parts[i];
    *out = sum;
  }
}

__global__ void positions(int* out) {
  const int block = (int)(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
  const int size = (int)(blockDim.x * blockDim.y * blockDim.z);
  const int thread = (int)(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
  out[block * size + thread] += block * size + thread;
}

__global__ void collectives(int* out) {
  const int me = (int)threadIdx.x, lane = me % 32;
  int wrong = 0;
  wrong |= (__ballot_sync(kAll, lane % 3 == 0) != 0x49249249u) << 0;
  wrong |= (__any_sync(kAll, lane == 5) != 1 || __any_sync(kAll, lane == 32) != 0) << 1;
  wrong |= (__all_sync(kAll, lane < 32) != 1 || __all_sync(kAll, lane < 31) != 0) << 2;
  wrong |= (__shfl_down_sync(kAll, lane, 5) != (lane + 5 < 32 ? lane + 5 : lane)) << 3;
  wrong |= (__shfl_up_sync(kAll, lane, 5) != (lane >= 5 ? lane - 5 : lane)) << 4;
  wrong |= (__shfl_sync(kAll, lane, 3, 8) != lane / 8 * 8 + 3) << 5;
  wrong |= (__shfl_down_sync(kAll, lane, 1, 8) != (lane % 8 < 7 ? lane + 1 : lane)) << 6;
  wrong |= (__reduce_add_sync(kAll, lane) != 496 || __reduce_max_sync(kAll, lane) != 31) << 7;
  wrong |= (__reduce_min_sync(kAll, lane + 3) != 3) << 8;
  wrong |= (__match_any_sync(kAll, lane / 16) != (lane < 16 ? 0xffffu : 0xffff0000u)) << 9;
  wrong |= (__shfl_xor_sync(kAll, (double)lane, 7) != (double)(lane ^ 7)) << 10;
  wrong |= (__syncthreads_count(me < 10) != 10) << 11;
  wrong |= (__syncthreads_or(me == 40) != 1 || __syncthreads_or(0) != 0) << 12;
  wrong |= (__syncthreads_and(1) != 1 || __syncthreads_and(me != 40) != 0) << 13;
  if (lane < 16) {  // two halves of a warp, each with itself
    wrong |= (__shfl_xor_sync(0xffffu, lane, 1) != (lane ^ 1)) << 14;
  } else {
    wrong |= (__reduce_add_sync(0xffff0000u, 1) != 16) << 14;
  }
  out[me] = wrong;
}

__global__ void short_warp(int* out) {  // the second warp has 16 threads
  const int sum = __reduce_add_sync(kAll, 1);
  out[threadIdx.x] = sum;
}

__global__ void neighbours(int* out) {
  __shared__ int x[64];
  for (int round = 0; round < 50; ++round) {
    x[threadIdx.x] = round;
    __syncwarp();
    out[threadIdx.x] += x[threadIdx.x ^ 1];
    __syncwarp();
  }
}

__global__ void bit_tricks(int* out) {
  int wrong = 0;
  wrong |= (__funnelshift_r(0x11223344u, 0x55667788u, 8) != 0x88112233u) << 0;
  wrong |= (__funnelshift_l(0x11223344u, 0x55667788u, 8) != 0x66778811u) << 1;
  wrong |= (__byte_perm(0x33221100u, 0x77665544u, 0x7250u) != 0x77225500u) << 2;
  wrong |= (__float_as_uint(1.0f) != 0x3f800000u || __uint_as_float(0x40000000u) != 2.0f) << 3;
  wrong |= (__popc(0xf0f0u) != 8 || __clz(1) != 31 || __ffs(8) != 4 || __brev(1) != 1u << 31) << 4;
  wrong |= (__umulhi(0x80000000u, 6u) != 3u) << 5;
  wrong |= (__bfloat162float(__float2bfloat16_rn(1.00390625f)) != 1.0f) << 6;  // ties to even
  wrong |= (__half2float(__float2half_rn(65504.0f)) != 65504.0f) << 7;
  wrong |= (min(3, 4u) != 3u || max(3LL, 4) != 4) << 8;
  *out = wrong;
}

__global__ void atomics(int* x, float* f, unsigned long long* wide) {
  const int me = (int)threadIdx.x;
  atomicAdd(&x[0], 2);
  atomicSub(&x[1], 1);
  atomicMax(&x[2], me);
  atomicMin(&x[3], -me);
  atomicOr(&x[4], 1 << me % 8);
  atomicAnd(&x[5], ~(1 << me % 8));
  atomicXor(&x[6], me);
  atomicExch(&x[7], 7);
  atomicInc((unsigned*)&x[8], 9);
  atomicCAS(&x[9], me, me + 1);  // only in order does each find its own
  atomicAdd(f, 0.5f);
  atomicAdd(wide, 1ull << 40);
}

}  // namespace

CASE(block_sums) {
  const int columns = 1003;
  std::vector<int64_t> in(9 * columns), out(9), expected(9);
  for (size_t i = 0; i < in.size(); ++i) {
    in[i] = (int64_t)(i * 2654435761u % 1000003);
    expected[i / columns] += in[i];
  }
  launch({4, 256, 0, nullptr}, sum_rows, in.data(), out.data(), columns);
  return compare(out, expected);
}

// Powers of two, so that every sum is exact whatever its order; rows at every alignment.
CASE(online_log_sum_exp) {
  for (int size : {1, 2, 3, 4, 5, 31, 512, 2047}) {
    for (int shift = 0; shift < 4; ++shift) {
      std::vector<float> memory((size_t)(size + shift)), out(1);
      float* in = memory.data() + shift;
      double sum = 0;
      for (int i = 0; i < size; ++i) {
        in[i] = (float)(i * 7 % 11);
        sum += exp2(in[i]);
      }
      launch({1, 128, 0, nullptr}, log_sum_exp2, in, out.data(), size);
      if (fabs(out[0] - log2(sum)) > 1e-6) {
        return compare<double>({out[0]}, {log2(sum)}) + " of " + text(size);
      }
    }
  }
  return "exact";
}

CASE(histogram_by_atomics) {
  std::vector<int> in(5000), out(16), expected(16);
  for (size_t i = 0; i < in.size(); ++i) expected[in[i] = (int)(i * i % 13)] += 2;
  launch({2, 96, 16 * sizeof(int), nullptr}, histogram, in.data(), 5000, out.data());
  return compare(out, expected);
}

CASE(last_block) {
  std::vector<int> parts(10), out(1);
  unsigned tickets = 0;
  launch({10, 32, 0, nullptr}, last_block_sums, parts.data(), &tickets, out.data());
  return compare(out, {55});
}

CASE(indices_in_three_dims) {
  std::vector<int> out(24 * 30), expected(24 * 30);
  for (int i = 0; i < 24 * 30; ++i) expected[i] = i;
  launch({dim3(2, 3, 4), dim3(5, 3, 2), 0, nullptr}, positions, out.data());
  return compare(out, expected);
}

CASE(every_collective) {
  std::vector<int> out(64, -1);
  launch({1, 64, 0, nullptr}, collectives, out.data());
  return compare(out, std::vector<int>(64, 0));
}

CASE(a_short_warp) {
  std::vector<int> out(48), expected(48, 32);
  for (int i = 32; i < 48; ++i) expected[i] = 16;
  launch({1, 48, 0, nullptr}, short_warp, out.data());
  return compare(out, expected);
}

CASE(syncwarp_orders) {
  std::vector<int> out(64);
  launch({1, 64, 0, nullptr}, neighbours, out.data());
  return compare(out, std::vector<int>(64, 49 * 50 / 2));
}

CASE(bits_and_conversions) {
  std::vector<int> out(1, -1);
  launch({1, 1, 0, nullptr}, bit_tricks, out.data());
  return compare(out, {0});
}

CASE(every_atomic) {
  std::vector<int> x = {0, 0, 0, 0, 0, 0x1ff, 0, 0, 0, 0};
  float half = 0;
  unsigned long long wide = 0;
  launch({1, 64, 0, nullptr}, atomics, x.data(), &half, &wide);
  x.push_back((int)half);
  x.push_back((int)(wide >> 40));
  return compare(x, {128, -64, 63, -63, 0xff, 0x100, 0, 7, 4, 64, 32, 64});
}
