// A row of logits on a GPU: keys that order it, strips that a warp reads, sums over a block.
#pragma once

#include "core/online_softmax.cuh"
#include "core/vector.cuh"

namespace logpi {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kStrips = 1024;  // of a row at most: what is known of each is in shared memory

// A logit as an integer that rises with it, without the bits that its dtype leaves 0; -0 is 0.
template <class T>
struct Key {
  static constexpr int kDropped = sizeof(T) == 4 ? 0 : 16;
};
template <>
struct Key<f16_t> {
  static constexpr int kDropped = 13;
};

__device__ inline int32_t rising(float z) {
  const int32_t bits = __float_as_int(z + 0.0f);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
template <class T>
__device__ inline int32_t key_of(float z) {
  return rising(z) >> Key<T>::kDropped;
}
template <class T>
__device__ inline float value_of(int32_t key) {
  constexpr int dropped = Key<T>::kDropped;
  // The dropped bits of a negative number's key are ones.
  const int32_t low = key < 0 ? (int32_t)((1u << dropped) - 1) : 0;
  const int32_t whole = (int32_t)((uint32_t)key << dropped) | low;
  return __int_as_float(whole ^ ((whole >> 31) & 0x7fffffff));
}
// The lowest key whose value is at least x, a finite number.
template <class T>
__device__ inline int32_t key_from(double x) {
  constexpr double kLargest = 3.40282346638528859812e38;
  const float near = (float)fmin(fmax(x, -kLargest), kLargest);
  const int32_t whole = rising(near) + ((double)near < x ? 1 : 0);
  constexpr int dropped = Key<T>::kDropped;
  return whole < 0 ? whole >> dropped : (int32_t)((whole + (1u << dropped) - 1) >> dropped);
}

// A row in strips of neighbours, each a warp's: `each` vectors a lane, so that there are at most
// kStrips. Elements past the end are -inf.
template <class T>
struct Strips {
  static constexpr int n = kVector<T>;
  const T* z;
  int64_t size;
  int each, count;
  VectorReader<T> reader;

  __device__ Strips(const T* row, int64_t columns) : z(row), size(columns), reader(row, columns) {
    const int64_t vectors = (size + kWarp * n - 1) / (kWarp * n);
    each = (int)((vectors + kStrips - 1) / kStrips);
    count = (int)((vectors + each - 1) / each);
  }

  // The id of the first of the lane's elements in vector `at` of a strip.
  __device__ int64_t first(int strip, int at) const {
    return (((int64_t)strip * each + at) * kWarp + threadIdx.x % kWarp) * n;
  }
  __device__ void load(int strip, int at, float (&out)[n]) const {
    load_padded(reader, z, size, first(strip, at) / n, out);
  }
};

__device__ inline int32_t block_max(int32_t x) {
  __shared__ int32_t of_warp[kWarps];
  x = __reduce_max_sync(kFullWarp, x);
  __syncthreads();  // who came before has read
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = x;
  __syncthreads();
  int32_t best = of_warp[0];
  for (int w = 1; w < kWarps; ++w) best = max(best, of_warp[w]);
  return best;
}

// The sum over the block to every thread; in the same order always.
template <class U>
__device__ U block_sum(U x) {
  __shared__ U of_warp[kWarps];
  x = warp_sum(x);
  __syncthreads();  // who came before has read
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = x;
  __syncthreads();
  U sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += of_warp[w];
  return sum;
}

template <class U>
__device__ U warp_before(U x) {  // the sum over the lanes before
  U upto = x;
  for (int step = 1; step < kWarp; step *= 2) {
    const U other = __shfl_up_sync(kFullWarp, upto, step);
    if ((int)(threadIdx.x % kWarp) >= step) upto += other;
  }
  return upto - x;
}

// The sum over the threads before, and over all.
template <class U>
struct Scan {
  U before, all;
};
template <class U>
__device__ Scan<U> block_scan(U x) {
  __shared__ U of_warp[kWarps];
  const U before = warp_before(x);
  __syncthreads();
  if (threadIdx.x % kWarp == kWarp - 1) of_warp[threadIdx.x / kWarp] = before + x;
  __syncthreads();
  Scan<U> out = {before, 0};
  for (int w = 0; w < kWarps; ++w) {
    if (w < (int)threadIdx.x / kWarp) out.before += of_warp[w];
    out.all += of_warp[w];
  }
  return out;
}

}  // namespace logpi
