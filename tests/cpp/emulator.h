// CUDA's names on a CPU, for kernels compiled by g++ with -DLOGPI_CUDA_EMULATOR:
// docs/design/emulator.md.
//
// The toolkit's own headers give the types and conversions. What a device alone can do is done by
// emulator/machine.h, which reports misuse with file and line.
#pragma once

// threadIdx and friends as plain variables: the toolkit's are `extern const`, which may be cached.
#define __DEVICE_LAUNCH_PARAMETERS_H__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>

#include "emulator/machine.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __shared__ static thread_local  // works in templates, as a section attribute does not
#define __launch_bounds__(...)

namespace emulator {

template <class T>
struct Identity {  // keeps a parameter out of deduction, as C++20's std::type_identity
  using type = T;
};
template <class T>
using Same = typename Identity<T>::type;

template <class T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T>
T from_bits(uint64_t bits) {
  T value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// A lane that asks past its group of `width` lanes keeps its own value, as on a device.
template <class T>
T shuffle(const char* what, unsigned mask, T value, int from, int width, Site site) {
  if (from < 0 || from >= (lane() / width + 1) * width) from = lane();
  const Values all = meet(what, mask, to_bits(value), false, site);
  if (!(all.mask >> from & 1)) {
    fail(std::string(what) + " reads lane " + std::to_string(from) + ", which does not take part,",
         site);
  }
  return from_bits<T>(all.of[from]);
}

// Folds fold(so_far, lane, bits) over the lanes of the mask.
template <class R, class F>
R vote(const char* what, unsigned mask, uint64_t value, R start, Site site, const F& fold) {
  const Values all = meet(what, mask, value, false, site);
  for (int i = 0; i < kWarp; ++i) {
    if (all.mask >> i & 1) start = fold(start, i, all.of[i]);
  }
  return start;
}
template <class T, class F>
T reduce(const char* what, unsigned mask, T value, Site site, const F& fold) {
  bool first = true;
  return vote(what, mask, to_bits(value), value, site, [&](T so_far, int, uint64_t bits) {
    const T other = from_bits<T>(bits);
    return std::exchange(first, false) ? other : fold(so_far, other);
  });
}

template <class T>
T* aligned(T* p, const char* what, Site site) {
  if ((uintptr_t)p % sizeof(T) != 0) {
    fail("misaligned " + std::to_string(sizeof(T)) + "-byte " + what +
             " of an address that ends in " + std::to_string((uintptr_t)p % sizeof(T)),
         site);
  }
  return p;
}

// Relaxed, as on a device: what else was written is seen by others only after a fence.
template <class T, class F>
T atomic(T* p, const char* what, Site site, const F& next) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "as a device has them");
  using Bits = std::conditional_t<sizeof(T) == 2, uint16_t,
                                  std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
  Bits* const at = (Bits*)aligned(p, what, site);
  Bits before = __atomic_load_n(at, __ATOMIC_RELAXED);
  for (;;) {
    const T old = from_bits<T>(before);
    const Bits after = (Bits)to_bits<T>(next(old));
    if (__atomic_compare_exchange_n(at, &before, after, false, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED)) {
      after_atomic();
      return old;
    }
  }
}

}  // namespace emulator

#define threadIdx (::emulator::thread_index)
#define blockIdx (::emulator::block_index)
#define blockDim (::emulator::block_dim)
#define gridDim (::emulator::grid_dim)

// Whatever can go wrong knows where it was called.
#define EMULATOR_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMULATOR_HERE \
  ::emulator::Site { file, line }

inline void __syncthreads(EMULATOR_SITE) {
  emulator::barrier("__syncthreads", false, EMULATOR_HERE);
}
inline int __syncthreads_count(int value, EMULATOR_SITE) {
  return emulator::barrier("__syncthreads_count", value != 0, EMULATOR_HERE);
}
inline int __syncthreads_or(int value, EMULATOR_SITE) {
  return emulator::barrier("__syncthreads_or", value != 0, EMULATOR_HERE) != 0;
}
inline int __syncthreads_and(int value, EMULATOR_SITE) {
  return emulator::barrier("__syncthreads_and", value == 0, EMULATOR_HERE) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_SITE) {
  emulator::meet("__syncwarp", mask, 0, true, EMULATOR_HERE);
}
inline void __threadfence_block() { emulator::fence(); }
inline void __threadfence() { emulator::fence(); }
inline void __threadfence_system() { emulator::fence(); }
inline void __trap(EMULATOR_SITE) { emulator::fail("__trap", EMULATOR_HERE); }

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, EMULATOR_SITE) {
  const int base = emulator::lane() / width * width;
  return emulator::shuffle("__shfl_sync", mask, value, base + (from & (width - 1)), width,
                           EMULATOR_HERE);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int step, int width = 32, EMULATOR_SITE) {
  return emulator::shuffle("__shfl_xor_sync", mask, value, emulator::lane() ^ step, width,
                           EMULATOR_HERE);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned step, int width = 32, EMULATOR_SITE) {
  return emulator::shuffle("__shfl_down_sync", mask, value, emulator::lane() + (int)step, width,
                           EMULATOR_HERE);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned step, int width = 32, EMULATOR_SITE) {
  const int from = emulator::lane() % width < (int)step ? -1 : emulator::lane() - (int)step;
  return emulator::shuffle("__shfl_up_sync", mask, value, from, width, EMULATOR_HERE);
}

inline unsigned __ballot_sync(unsigned mask, int value, EMULATOR_SITE) {
  return emulator::vote("__ballot_sync", mask, value != 0, 0u, EMULATOR_HERE,
                        [](unsigned bits, int i, uint64_t x) { return bits | (unsigned)x << i; });
}
inline int __any_sync(unsigned mask, int value, EMULATOR_SITE) {
  return emulator::vote("__any_sync", mask, value != 0, 0, EMULATOR_HERE,
                        [](int any, int, uint64_t x) { return any | (int)x; });
}
inline int __all_sync(unsigned mask, int value, EMULATOR_SITE) {
  return emulator::vote("__all_sync", mask, value != 0, 1, EMULATOR_HERE,
                        [](int all, int, uint64_t x) { return all & (int)x; });
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, EMULATOR_SITE) {
  const uint64_t mine = emulator::to_bits(value);
  return emulator::vote(
      "__match_any_sync", mask, mine, 0u, EMULATOR_HERE,
      [&](unsigned same, int i, uint64_t x) { return same | (unsigned)(x == mine) << i; });
}
#define EMULATOR_REDUCE(name, fold)                              \
  template <class T>                                             \
  T name(unsigned mask, T value, EMULATOR_SITE) {                \
    return emulator::reduce(#name, mask, value, EMULATOR_HERE,   \
                            [](T a, T b) -> T { return fold; }); \
  }
EMULATOR_REDUCE(__reduce_add_sync, a + b)
EMULATOR_REDUCE(__reduce_min_sync, std::min(a, b))
EMULATOR_REDUCE(__reduce_max_sync, std::max(a, b))
EMULATOR_REDUCE(__reduce_and_sync, a& b)
EMULATOR_REDUCE(__reduce_or_sync, a | b)
EMULATOR_REDUCE(__reduce_xor_sync, a ^ b)

// Loads and stores with a hint for the caches.
#define EMULATOR_LOAD(name)                                        \
  template <class T>                                               \
  T name(const T* p, EMULATOR_SITE) {                              \
    return *emulator::aligned(p, "load by " #name, EMULATOR_HERE); \
  }
#define EMULATOR_STORE(name)                                         \
  template <class T>                                                 \
  void name(T* p, emulator::Same<T> value, EMULATOR_SITE) {          \
    *emulator::aligned(p, "store by " #name, EMULATOR_HERE) = value; \
  }
EMULATOR_LOAD(__ldg)
EMULATOR_LOAD(__ldca)
EMULATOR_LOAD(__ldcg)
EMULATOR_LOAD(__ldcs)
EMULATOR_LOAD(__ldlu)
EMULATOR_LOAD(__ldcv)
EMULATOR_STORE(__stwb)
EMULATOR_STORE(__stcg)
EMULATOR_STORE(__stcs)
EMULATOR_STORE(__stwt)

#define EMULATOR_ATOMIC(name, next)                                                     \
  template <class T>                                                                    \
  T name(T* p, emulator::Same<T> x, EMULATOR_SITE) {                                    \
    return emulator::atomic(p, #name, EMULATOR_HERE, [&](T old) -> T { return next; }); \
  }
EMULATOR_ATOMIC(atomicAdd, (T)(old + x))
EMULATOR_ATOMIC(atomicSub, (T)(old - x))
EMULATOR_ATOMIC(atomicMax, std::max(old, x))
EMULATOR_ATOMIC(atomicMin, std::min(old, x))
EMULATOR_ATOMIC(atomicAnd, (T)(old & x))
EMULATOR_ATOMIC(atomicOr, (T)(old | x))
EMULATOR_ATOMIC(atomicXor, (T)(old ^ x))
EMULATOR_ATOMIC(atomicExch, ((void)old, x))
EMULATOR_ATOMIC(atomicInc, old >= x ? T(0) : (T)(old + 1))
EMULATOR_ATOMIC(atomicDec, old == 0 || old > x ? x : (T)(old - 1))
template <class T>
T atomicCAS(T* p, emulator::Same<T> expected, emulator::Same<T> x, EMULATOR_SITE) {
  return emulator::atomic(p, "atomicCAS", EMULATOR_HERE,
                          [&](T old) { return old == expected ? x : old; });
}

inline float __uint_as_float(unsigned x) { return emulator::from_bits<float>(x); }
inline float __int_as_float(int x) { return emulator::from_bits<float>((unsigned)x); }
inline unsigned __float_as_uint(float x) { return (unsigned)emulator::to_bits(x); }
inline int __float_as_int(float x) { return (int)emulator::to_bits(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned bits) {
  return (unsigned)(((uint64_t)high << 32 | low) >> (bits & 31));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned bits) {
  return (unsigned)(((uint64_t)high << 32 | low) << (bits & 31) >> 32);
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = (uint64_t)b << 32 | a;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) {
    out |= (unsigned)(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  }
  return out;
}
inline double __longlong_as_double(long long x) { return emulator::from_bits<double>((uint64_t)x); }
inline long long __double_as_longlong(double x) { return (long long)emulator::to_bits(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned out = 0;
  for (int i = 0; i < 32; ++i) out |= (x >> i & 1) << (31 - i);
  return out;
}
// The device's fast versions are less accurate; how much is a question for a GPU.
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
// As on a device, for mixed integer types too.
template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return (std::common_type_t<A, B>)b < (std::common_type_t<A, B>)a ? b : a;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return (std::common_type_t<A, B>)a < (std::common_type_t<A, B>)b ? b : a;
}

// What core/launch.cuh is for a device.
namespace logpi {

struct LaunchConfig : emulator::Shape {
  LaunchConfig(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t, EMULATOR_SITE)
      : Shape{grid, block, shared_bytes, EMULATOR_HERE} {}
};

template <class... P, class... A>
void launch(const LaunchConfig& at, void (*kernel)(P...), A&&... args) {
  emulator::run(at, [&] { kernel(args...); });
}

inline void clear_async(void* p, size_t bytes, cudaStream_t) { memset(p, 0, bytes); }

template <class T>
T* dynamic_shared() {
  return (T*)emulator::dynamic_shared();
}

struct DeviceGuard {
  explicit DeviceGuard(int) {}
};

inline int multiprocessor_count(int) { return emulator::kMultiprocessors; }
inline size_t max_shared_bytes(int) { return emulator::kMaxSharedBytes; }

}  // namespace logpi
