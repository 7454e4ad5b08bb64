// Elements of a row of logits as floats, sixteen bytes at a time wherever the row lies.
#pragma once

#include <stdint.h>

#include "core/dtype.h"
#include "core/launch.cuh"

namespace logpi {

template <class T>
constexpr int kVector = 16 / (int)sizeof(T);  // elements of a 16-byte load

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16_t x) { return __uint_as_float((uint32_t)x.bits << 16); }
__device__ inline float to_float(f16_t x) { return __half2float(__ushort_as_half(x.bits)); }

template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline bf16_t from_float<bf16_t>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
__device__ inline f16_t from_float<f16_t>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

__device__ inline void unpack(const uint4& raw, float (&out)[4]) {
  out[0] = __uint_as_float(raw.x);
  out[1] = __uint_as_float(raw.y);
  out[2] = __uint_as_float(raw.z);
  out[3] = __uint_as_float(raw.w);
}
template <class T>
__device__ inline void unpack_pair(uint32_t raw, float* out) {
  out[0] = to_float(T{(uint16_t)(raw & 0xffff)});
  out[1] = to_float(T{(uint16_t)(raw >> 16)});
}
// bf16: the high half needs no shift.
template <>
__device__ inline void unpack_pair<bf16_t>(uint32_t raw, float* out) {
  out[0] = __uint_as_float(raw << 16);
  out[1] = __uint_as_float(raw & 0xffff0000u);
}
template <class T>
__device__ inline void unpack(const uint4& raw, float (&out)[8]) {
  unpack_pair<T>(raw.x, out);
  unpack_pair<T>(raw.y, out + 2);
  unpack_pair<T>(raw.z, out + 4);
  unpack_pair<T>(raw.w, out + 6);
}
template <class T>
struct Unpack {
  static __device__ void raw(const uint4& from, float (&out)[8]) { unpack<T>(from, out); }
};
template <>
struct Unpack<float> {
  static __device__ void raw(const uint4& from, float (&out)[4]) { unpack(from, out); }
};

template <class T>
__device__ inline uint4 pack(const float (&x)[8]) {
  uint32_t words[4];
  for (int i = 0; i < 4; ++i) {
    words[i] = from_float<T>(x[2 * i]).bits | (uint32_t)from_float<T>(x[2 * i + 1]).bits << 16;
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}
template <class T>
__device__ inline uint4 pack(const float (&x)[4]) {
  return make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]),
                    __float_as_uint(x[3]));
}

// Elements z[0], z[1], .. of a row, read in vectors that begin at z whatever its alignment: which
// element is whose must not depend on where a row lies in memory, or its bits would. kWrites: the
// kernel writes over what it reads, which the read-only cache may not hold.
template <class T, bool kWrites = false>
class VectorReader {
 public:
  __device__ VectorReader(const T* z, int64_t size)
      : z_(z), size_(size), shift_((int)((uintptr_t)z % 16)) {}

  // Whether vector `at` is all inside the row.
  __device__ bool whole(int64_t at) const { return (at + 1) * kVector<T> <= size_; }

  // The bits of a whole vector. A row that is not aligned takes two aligned loads, of which the
  // second is the next lane's first and comes from L1.
  __device__ uint4 load(int64_t at) const {
    const char* p = (const char*)(z_ + at * kVector<T>)-shift_;
    if (shift_ == 0) return load16(p);
    if (at == 0 || (at + 2) * kVector<T> > size_) return load_elements(at);
    const uint4 low = load16(p), high = load16(p + 16);
    return realign(low, high);
  }

 private:
  const T* z_;
  int64_t size_;
  int shift_;  // bytes past a 16-byte boundary

  static __device__ uint4 load16(const char* p) {
    return kWrites ? __ldcs((const uint4*)p) : __ldg((const uint4*)p);
  }

  // At the ends of a row the aligned loads would reach past it.
  __device__ uint4 load_elements(int64_t at) const {
    const T* from = z_ + at * kVector<T>;
    if (sizeof(T) == 4) {
      const uint32_t* words = (const uint32_t*)from;
      return make_uint4(words[0], words[1], words[2], words[3]);
    }
    const uint16_t* halves = (const uint16_t*)from;
    uint32_t words[4];
    for (int i = 0; i < 4; ++i) {
      words[i] = halves[2 * i] | (uint32_t)halves[2 * i + 1] << 16;
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }

  __device__ uint4 realign(const uint4& low, const uint4& high) const {
    uint32_t a = low.x, b = low.y, c = low.z, d = low.w, e = high.x, f = high.y, g = high.z;
    uint32_t h = high.w;
    if (shift_ & 8) a = c, b = d, c = e, d = f, e = g, f = h;
    if (shift_ & 4) a = b, b = c, c = d, d = e, e = f;
    const int bits = (shift_ & 3) * 8;
    return make_uint4(__funnelshift_r(a, b, bits), __funnelshift_r(b, c, bits),
                      __funnelshift_r(c, d, bits), __funnelshift_r(d, e, bits));
  }
};

// Vector `at` of a row as floats; what lies past the row's end is -inf.
template <class T>
__device__ inline void load_padded(const VectorReader<T>& reader, const T* z, int64_t size,
                                   int64_t at, float (&out)[kVector<T>]) {
  if (reader.whole(at)) {
    Unpack<T>::raw(reader.load(at), out);
    return;
  }
  const int64_t from = at * kVector<T>;
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) out[i] = from + i < size ? to_float(z[from + i]) : -INFINITY;
}

}  // namespace logpi
