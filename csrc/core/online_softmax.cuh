// The sums of a softmax, as threads, warps and rows hold them: relative to the largest element
// seen.
#pragma once

#include <stdint.h>

#include "core/host_device.h"
#include "core/launch.cuh"

namespace logpi {

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;
constexpr double kLn2 = 0.69314718055994530942;
constexpr double kLog2e = 1.44269504088896340736;

// 2^t for t <= 0: one instruction, relative error 2^-22, below 2^-126 it is 0.
__device__ inline float exp2_fast(float t) {
#if defined(__CUDA_ARCH__)
  float e;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(t));
  return e;
#else
  return t < -126.0f ? 0.0f : exp2f(t);
#endif
}

// 2^kLowest is 0, and times a sum it is 0 as well, as 0 * -inf is not.
constexpr float kLowest = -1000.0f;

// What a row's outputs ask for: sum e^d alone, with sum d e^d, or with sum e^2d and sum z as well.
enum class Sums : int { lse = 0, entropy = 1, all = 2 };

// Sums over part of a row, d = log2(e) (x - ref) / T in units of log2.
//
// `ref` is the largest element seen, or a value known to be in the row that is larger still. If it
// was seen (at >= 0) it is left out of the sums: a 1.0 would swallow the last digits of what else
// there is, and in a peaked row those digits are the entropy. log(sum) then is log1p(rest).
struct Partial {
  float ref;      // in logits
  float rest;     // sum of 2^d
  float dot;      // sum of d 2^d
  float square;   // sum of 2^2d
  int at;         // the lowest id at which ref was seen, or -1
  double linear;  // sum of z, ref included

  __device__ float own() const { return at >= 0 ? 1.0f : 0.0f; }
};

// The next float above: what the reference must be beaten by once it is the thread's own.
__device__ inline float next_above(float x) {
  if (x == 0.0f) return __uint_as_float(1);
  const int bits = __float_as_int(x);
  return __int_as_float(x > 0.0f ? bits + 1 : bits - 1);
}

template <class U>
__device__ inline U warp_sum(U x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kFullWarp, x, step);
  return x;
}
__device__ inline float warp_max(float x) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, step));
  }
  return x;
}
__device__ inline int warp_min(int x) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    x = min(x, __shfl_xor_sync(kFullWarp, x, step));
  }
  return x;
}

// The partials of a warp's lanes as one, in every lane. `distance(a, b)` is d of logit a to
// reference b.
template <Sums kSums, class Distance>
__device__ inline Partial warp_merge(const Partial& mine, const Distance& distance) {
  Partial out;
  out.ref = warp_max(mine.ref);
  const float t = fmaxf(distance(mine.ref, out.ref), kLowest), w = exp2_fast(t), own = mine.own();
  const bool top = mine.at >= 0 && mine.ref == out.ref;
  const unsigned tops = __ballot_sync(kFullWarp, top);
  // One lane's own reference is left out; that of another lane counts.
  const bool left_out = tops != 0 && (tops & (0u - tops)) == 1u << (threadIdx.x % kWarp);
  const float counted = left_out ? 0.0f : own;
  out.rest = warp_sum((mine.rest + counted) * w);
  out.dot = 0.0f;
  out.square = 0.0f;
  out.linear = 0.0;
  if (kSums != Sums::lse) {
    out.dot = warp_sum((mine.dot + (mine.rest + own) * t) * w);
  }
  if (kSums == Sums::all) {
    out.square = warp_sum((mine.square + counted) * (w * w));
    out.linear = warp_sum(mine.linear);
  }
  out.at = tops == 0 ? -1 : warp_min(top ? mine.at : INT32_MAX);
  return out;
}

// The sums of a whole row, in double: what the outputs are made of.
struct RowSums {
  float ref;
  int at;
  double rest, dot, square, linear;
};

// `count` partials as one row, in every lane of a warp.
template <class Distance>
__device__ inline RowSums merge_row(const Partial* partials, int count, const Distance& distance) {
  const int lane = threadIdx.x % kWarp;
  RowSums out;
  float ref = -INFINITY;
  for (int i = lane; i < count; i += kWarp) ref = fmaxf(ref, partials[i].ref);
  out.ref = warp_max(ref);
  int at = INT32_MAX;
  for (int i = lane; i < count; i += kWarp) {
    if (partials[i].at >= 0 && partials[i].ref == out.ref) at = min(at, partials[i].at);
  }
  at = warp_min(at);
  out.at = at == INT32_MAX ? -1 : at;
  double rest = 0, dot = 0, square = 0, linear = 0;
  for (int i = lane; i < count; i += kWarp) {
    const Partial& p = partials[i];
    const double t = (double)fmaxf(distance(p.ref, out.ref), kLowest), w = exp2(t);
    const double own = (double)p.own();
    const double counted = p.at >= 0 && p.at == at && p.ref == out.ref ? 0.0 : own;
    rest += ((double)p.rest + counted) * w;
    dot += ((double)p.dot + ((double)p.rest + own) * t) * w;
    square += ((double)p.square + counted) * w * w;
    linear += p.linear;
  }
  out.rest = warp_sum(rest);
  out.dot = warp_sum(dot);
  out.square = warp_sum(square);
  out.linear = warp_sum(linear);
  return out;
}

}  // namespace logpi
