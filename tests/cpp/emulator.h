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

inline dim3 block_dim, grid_dim;
inline uint3 block_index;

inline uint3 thread_index() {
  const unsigned at = (unsigned)Machine::get().current();
  return {at % block_dim.x, at / block_dim.x % block_dim.y, at / block_dim.x / block_dim.y};
}

struct ThreadIndex {  // reads as threadIdx.x
  struct X {
    operator unsigned() const { return thread_index().x; }
  } x;
  struct Y {
    operator unsigned() const { return thread_index().y; }
  } y;
  struct Z {
    operator unsigned() const { return thread_index().z; }
  } z;
};

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

template <class T>
T shuffle(const char* what, unsigned mask, T value, int from, Site site) {
  Machine& machine = Machine::get();
  return machine.meet(what, mask, to_bits(value), false, site, [&](const uint64_t* values) {
    if (from < 0 || from >= kWarp || !(mask >> from & 1)) {
      machine.fail(machine.who(machine.current()) + " reads lane " + std::to_string(from) +
                   ", which is not in mask " + Machine::hex(mask) + ", by " + what + " at " +
                   site.text());
    }
    return from_bits<T>(values[from]);
  });
}

template <class F>
auto vote(const char* what, unsigned mask, uint64_t value, Site site, const F& fold) {
  return Machine::get().meet(what, mask, value, false, site, [&](const uint64_t* values) {
    uint64_t lanes[kWarp];
    int count = 0;
    for (int i = 0; i < kWarp; ++i) {
      if (mask >> i & 1) lanes[count++] = values[i];
    }
    return fold(lanes, count);
  });
}

template <class T>
const T* aligned(const T* p, const char* what, Site site) {
  if ((uintptr_t)p % sizeof(T) != 0) {
    Machine& machine = Machine::get();
    machine.fail("misaligned " + std::to_string(sizeof(T)) + "-byte access by " + what + " of " +
                 machine.who(machine.current()) + " at " + site.text());
  }
  return p;
}

}  // namespace emulator

#define threadIdx (::emulator::ThreadIndex{})
#define blockIdx (::emulator::block_index)
#define blockDim (::emulator::block_dim)
#define gridDim (::emulator::grid_dim)

// Every collective knows where it was called.
#define EMULATOR_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMULATOR_HERE \
  ::emulator::Site { file, line }

inline void __syncthreads(EMULATOR_SITE) {
  emulator::Machine::get().barrier("__syncthreads", EMULATOR_HERE);
}
inline int __syncthreads_count(bool value, EMULATOR_SITE) {
  return emulator::Machine::get().barrier_count("__syncthreads_count", value, EMULATOR_HERE);
}
inline int __syncthreads_or(bool value, EMULATOR_SITE) {
  return emulator::Machine::get().barrier_count("__syncthreads_or", value, EMULATOR_HERE) != 0;
}
inline int __syncthreads_and(bool value, EMULATOR_SITE) {
  return emulator::Machine::get().barrier_count("__syncthreads_and", !value, EMULATOR_HERE) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_SITE) {
  emulator::Machine::get().meet("__syncwarp", mask, 0, true, EMULATOR_HERE,
                                [](const uint64_t*) { return 0; });
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __shfl_sync(unsigned mask, T value, int from, EMULATOR_SITE) {
  return emulator::shuffle("__shfl_sync", mask, value, from & 31, EMULATOR_HERE);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int step, EMULATOR_SITE) {
  const int lane = emulator::Machine::get().current() % 32;
  return emulator::shuffle("__shfl_xor_sync", mask, value, lane ^ step, EMULATOR_HERE);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int step, EMULATOR_SITE) {
  const int lane = emulator::Machine::get().current() % 32;
  return emulator::shuffle("__shfl_down_sync", mask, value, lane + step < 32 ? lane + step : lane,
                           EMULATOR_HERE);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int step, EMULATOR_SITE) {
  const int lane = emulator::Machine::get().current() % 32;
  return emulator::shuffle("__shfl_up_sync", mask, value, lane >= step ? lane - step : lane,
                           EMULATOR_HERE);
}
inline unsigned __ballot_sync(unsigned mask, bool value, EMULATOR_SITE) {
  return emulator::Machine::get().meet("__ballot_sync", mask, value, false, EMULATOR_HERE,
                                       [&](const uint64_t* values) {
                                         unsigned bits = 0;
                                         for (int i = 0; i < 32; ++i) {
                                           if (mask >> i & 1 && values[i]) bits |= 1u << i;
                                         }
                                         return bits;
                                       });
}
inline int __any_sync(unsigned mask, bool value, EMULATOR_SITE) {
  return emulator::vote("__any_sync", mask, value, EMULATOR_HERE, [](const uint64_t* v, int n) {
    return (int)std::any_of(v, v + n, [](uint64_t x) { return x != 0; });
  });
}
inline int __all_sync(unsigned mask, bool value, EMULATOR_SITE) {
  return emulator::vote("__all_sync", mask, value, EMULATOR_HERE, [](const uint64_t* v, int n) {
    return (int)std::all_of(v, v + n, [](uint64_t x) { return x != 0; });
  });
}
template <class T>
T __reduce_add_sync(unsigned mask, T value, EMULATOR_SITE) {
  return emulator::vote("__reduce_add_sync", mask, emulator::to_bits(value), EMULATOR_HERE,
                        [](const uint64_t* v, int n) {
                          T sum = 0;
                          for (int i = 0; i < n; ++i) sum += emulator::from_bits<T>(v[i]);
                          return sum;
                        });
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, EMULATOR_SITE) {
  return emulator::vote("__reduce_max_sync", mask, emulator::to_bits(value), EMULATOR_HERE,
                        [](const uint64_t* v, int n) {
                          T best = emulator::from_bits<T>(v[0]);
                          for (int i = 1; i < n; ++i) {
                            best = std::max(best, emulator::from_bits<T>(v[i]));
                          }
                          return best;
                        });
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, EMULATOR_SITE) {
  const uint64_t mine = emulator::to_bits(value);
  return emulator::Machine::get().meet("__match_any_sync", mask, mine, false, EMULATOR_HERE,
                                       [&](const uint64_t* values) {
                                         unsigned same = 0;
                                         for (int i = 0; i < 32; ++i) {
                                           if (mask >> i & 1 && values[i] == mine) same |= 1u << i;
                                         }
                                         return same;
                                       });
}

// Loads and stores with a hint for the caches.
#define EMULATOR_LOAD(name)                             \
  template <class T>                                    \
  T name(const T* p, EMULATOR_SITE) {                   \
    return *emulator::aligned(p, #name, EMULATOR_HERE); \
  }
#define EMULATOR_STORE(name)                                             \
  template <class T>                                                     \
  void name(T* p, std::type_identity_t<T> value, EMULATOR_SITE) {        \
    *const_cast<T*>(emulator::aligned(p, #name, EMULATOR_HERE)) = value; \
  }
EMULATOR_LOAD(__ldg)
EMULATOR_LOAD(__ldca)
EMULATOR_LOAD(__ldcg)
EMULATOR_LOAD(__ldcs)
EMULATOR_STORE(__stcs)
EMULATOR_STORE(__stcg)
EMULATOR_STORE(__stwb)

// Atomics create order between threads; nothing else but barriers does.
template <class T, class F>
T emulator_atomic(T* p, const F& next) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  Bits before = __atomic_load_n((Bits*)p, __ATOMIC_ACQUIRE), after;
  T old;
  do {
    memcpy(&old, &before, sizeof old);
    const T value = next(old);
    memcpy(&after, &value, sizeof after);
  } while (!__atomic_compare_exchange_n((Bits*)p, &before, after, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_ACQUIRE));
  return old;
}
template <class T>
T atomicAdd(T* p, std::type_identity_t<T> x) {
  return emulator_atomic(p, [&](T old) { return (T)(old + x); });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> x) {
  return emulator_atomic(p, [&](T old) { return std::max(old, x); });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> x) {
  return emulator_atomic(p, [&](T old) { return std::min(old, x); });
}
template <class T>
T atomicOr(T* p, std::type_identity_t<T> x) {
  return emulator_atomic(p, [&](T old) { return (T)(old | x); });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> x) {
  return emulator_atomic(p, [&](T) { return x; });
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> x) {
  return emulator_atomic(p, [&](T old) { return old == expected ? x : old; });
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

struct LaunchConfig {
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
  cudaStream_t stream;
};

template <class... P, class... A>
void launch(const LaunchConfig& at, void (*kernel)(P...), A&&... args) {
  emulator::Machine& machine = emulator::Machine::get();
  emulator::grid_dim = at.grid;
  emulator::block_dim = at.block;
  const std::function<void()> body = [&] { kernel(args...); };
  const long blocks = (long)at.grid.x * at.grid.y * at.grid.z;
  for (long i = 0; i < blocks; ++i) {
    emulator::block_index = {(unsigned)(i % at.grid.x), (unsigned)(i / at.grid.x % at.grid.y),
                             (unsigned)(i / at.grid.x / at.grid.y)};
    machine.block_ = i;
    machine.run_block((int)(at.block.x * at.block.y * at.block.z), at.shared_bytes, body);
  }
}

template <class T>
T* dynamic_shared() {
  return (T*)emulator::Machine::get().shared();
}

struct DeviceGuard {
  explicit DeviceGuard(int) {}
};

// A small device, so that tests meet what is rare on a large one: few blocks, rows past shared
// memory.
inline int multiprocessor_count(int) { return 3; }
inline size_t max_shared_bytes(int) { return 24 << 10; }

}  // namespace logpi
