// A vector of floats as wide as the instruction set allows, over GCC's vector extensions.
//
// Include it inside namespace logpi::LOGPI_ISA only (core/isa_begin.h does): the same inline
// function compiled with other flags must not be the same symbol, or the linker would keep one of
// them for every CPU. For the same reason no std:: template is used here or in an -inl.h file.

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kLanes = kBytes / 4;

typedef float vfloat __attribute__((vector_size(kBytes)));
typedef int32_t vint __attribute__((vector_size(kBytes)));
typedef uint32_t vuint __attribute__((vector_size(kBytes)));
typedef int16_t vshort __attribute__((vector_size(kBytes)));
typedef uint16_t vhalf __attribute__((vector_size(kBytes / 2)));

#define LOGPI_INLINE static inline __attribute__((always_inline))

template <class V>
LOGPI_INLINE V load(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
LOGPI_INLINE void store(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}
LOGPI_INLINE vfloat splat(float x) { return vfloat{} + x; }
LOGPI_INLINE vint bits(vfloat x) { return (vint)x; }
LOGPI_INLINE vfloat from_bits(vint x) { return (vfloat)x; }

// max(low, x) with x second: x86 returns the second operand where either is NaN, so NaN survives.
LOGPI_INLINE vfloat max_keep_nan(vfloat low, vfloat x) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_max_ps((__m512)low, (__m512)x);
#elif defined(__AVX2__)
  return (vfloat)_mm256_max_ps((__m256)low, (__m256)x);
#elif defined(__SSE2__)
  return (vfloat)_mm_max_ps((__m128)low, (__m128)x);
#else
  return low > x ? low : x;
#endif
}

LOGPI_INLINE vfloat min_keep_nan(vfloat high, vfloat x) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_min_ps((__m512)high, (__m512)x);
#elif defined(__AVX2__)
  return (vfloat)_mm256_min_ps((__m256)high, (__m256)x);
#elif defined(__SSE2__)
  return (vfloat)_mm_min_ps((__m128)high, (__m128)x);
#else
  return high < x ? high : x;
#endif
}
// Whether every lane is at most `limit`; a NaN is not.
LOGPI_INLINE bool all_at_most(vfloat x, float limit) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, (__m512)splat(limit), _CMP_LE_OQ) == 0xffff;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)x, (__m256)splat(limit), _CMP_LE_OQ)) == 0xff;
#elif defined(__SSE2__)
  return _mm_movemask_ps(_mm_cmple_ps((__m128)x, (__m128)splat(limit))) == 0xf;
#else
  int32_t both = -1;
  for (int i = 0; i < kLanes; ++i) both &= (x <= limit)[i];
  return both != 0;
#endif
}

LOGPI_INLINE vfloat fma(vfloat a, vfloat b, vfloat c) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (vfloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (vfloat)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

// A non-temporal store; p is aligned to kBytes.
LOGPI_INLINE void stream(void* p, vint x) {
#if defined(__AVX512F__)
  _mm512_stream_si512((__m512i*)p, (__m512i)x);
#elif defined(__AVX2__)
  _mm256_stream_si256((__m256i*)p, (__m256i)x);
#elif defined(__SSE2__)
  _mm_stream_si128((__m128i*)p, (__m128i)x);
#else
  store(p, x);
#endif
}
LOGPI_INLINE void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

LOGPI_INLINE float hmax(vfloat x) {
  float best = x[0];
  for (int i = 1; i < kLanes; ++i) best = x[i] > best || x[i] != x[i] ? x[i] : best;
  return best;
}
// 2^t for t in [kExp2Low, 127], 0 at kExp2Low, by a degree-5 minimax polynomial, relative
// error 1.6e-7. Its constant term is 1, so 2^0 is exactly 1. NaN stays NaN.
#if defined(__AVX512F__)
// scalef takes any exponent: below 2^-149 the result is 0, also at -inf.
constexpr bool kExp2TakesAny = true;
constexpr float kExp2Low = -1000.0f;
LOGPI_INLINE vfloat exp2(vfloat t) {
  const vfloat f = (vfloat)_mm512_reduce_ps((__m512)t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  vfloat p = splat(0x1.e974fap-10f);  // f = t - floor(t)
  p = fma(p, f, splat(0x1.277856p-7f));
  p = fma(p, f, splat(0x1.c91ce6p-5f));
  p = fma(p, f, splat(0x1.ebdb56p-3f));
  p = fma(p, f, splat(0x1.62e4bap-1f));
  p = fma(p, f, splat(1.0f));
  return (vfloat)_mm512_scalef_ps((__m512)p, (__m512)t);  // times 2^floor(t)
}
#else
constexpr bool kExp2TakesAny = false;
constexpr float kExp2Low = -126.0f;
LOGPI_INLINE vfloat exp2(vfloat t) {
  const vfloat magic = splat(0x1.8p23f);  // the sum's low bits are round(t)
  const vfloat shifted = t + magic;
  const vfloat f = t - (shifted - magic);
  vfloat p = splat(0x1.5bba14p-10f);
  p = fma(p, f, splat(0x1.3cea88p-7f));
  p = fma(p, f, splat(0x1.c6b752p-5f));
  p = fma(p, f, splat(0x1.ebf9bcp-3f));
  p = fma(p, f, splat(0x1.62e42ap-1f));
  p = fma(p, f, splat(1.0f));
  // Exactly 0 at the lower end, where the clamp has put all that underflows. NaN is unequal.
  return from_bits((bits(p) + (bits(shifted) << 23)) & (t != kExp2Low));
}
#endif
// t brought into the range of exp2; NaN stays NaN.
LOGPI_INLINE vfloat exp2_range(vfloat t) {
  t = max_keep_nan(splat(kExp2Low), t);
  return kExp2TakesAny ? t : min_keep_nan(splat(127.0f), t);
}

// --- Packs: 2 * kLanes elements of a dtype as two vectors of floats
// ------------------------------- The elements of a pack come in any order the dtype finds cheap;
// store_pack undoes load_pack.

struct Pack {
  vfloat a, b;
};
constexpr int kPack = 2 * kLanes;

LOGPI_INLINE Pack load_pack(const float* p) { return {load<vfloat>(p), load<vfloat>(p + kLanes)}; }
LOGPI_INLINE Pack load_pack(const bf16_t* p) {
  const vint x = load<vint>(p);  // a 32-bit lane holds two bf16: its halves are two floats
  return {from_bits(x << 16), from_bits(x & (int32_t)0xffff0000)};
}
LOGPI_INLINE vfloat half_to_float(vhalf h) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_cvtph_ps((__m256i)h);
#elif defined(__AVX2__)
  return (vfloat)_mm256_cvtph_ps((__m128i)h);
#else
  const vint x = __builtin_convertvector(h, vint);
  const vint magnitude = (x & 0x7fff) << 13;
  const vfloat scaled = from_bits(magnitude) * 0x1p112f;  // rebias; subnormals come out right
  const vint special = bits(scaled) | 0x7f800000;         // inf and NaN
  return from_bits(((magnitude >= (0x7c00 << 13)) ? special : bits(scaled)) | ((x & 0x8000) << 16));
#endif
}
LOGPI_INLINE vhalf float_to_half(vfloat v) {
#if defined(__AVX512F__)
  return (vhalf)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (vhalf)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const vint sign = (bits(v) >> 16) & 0x8000;
  const vint m = bits(v) & 0x7fffffff;
  const vint subnormal = bits(from_bits(m) + 0.5f) - 0x3f000000;  // the addition rounds
  const vint normal = (m - (112 << 23) + 0xfff + ((m >> 13) & 1)) >> 13;
  vint h = m < (113 << 23) ? subnormal : normal;
  h = h > 0x7c00 ? vint{} + 0x7c00 : h;
  h = m > 0x7f800000 ? vint{} + 0x7e00 : h;
  return __builtin_convertvector((vuint)(h | sign), vhalf);
#endif
}
LOGPI_INLINE Pack load_pack(const f16_t* p) {
  return {half_to_float(load<vhalf>(p)), half_to_float(load<vhalf>(p + kLanes))};
}

// The same elements in their order.
LOGPI_INLINE void unpack(const float* p, float* out) { __builtin_memcpy(out, p, 4 * kPack); }
LOGPI_INLINE void unpack(const f16_t* p, float* out) {
  store(out, half_to_float(load<vhalf>(p)));
  store(out + kLanes, half_to_float(load<vhalf>(p + kLanes)));
}
LOGPI_INLINE void unpack(const bf16_t* p, float* out) {
  store(out, __builtin_convertvector(load<vhalf>(p), vint) << 16);
  store(out + kLanes, __builtin_convertvector(load<vhalf>(p + kLanes), vint) << 16);
}

// A float's bits rounded to the nearest bf16, ties to even, in the upper half.
LOGPI_INLINE vint round_to_bf16(vfloat x) {
  const vint rounded = bits(x) + 0x7fff + ((bits(x) >> 16) & 1);
  return x == x ? rounded : vint{} + 0x7fc00000;
}
template <bool kStream>
LOGPI_INLINE void put(void* p, vint x) {
  if (kStream) {
    stream(p, x);
  } else {
    store(p, x);
  }
}
template <bool kStream>
LOGPI_INLINE void store_pack(float* p, Pack x) {
  put<kStream>(p, bits(x.a));
  put<kStream>(p + kLanes, bits(x.b));
}
template <bool kStream>
LOGPI_INLINE void store_pack(bf16_t* p, Pack x) {
  const vuint low = (vuint)round_to_bf16(x.a) >> 16;
  put<kStream>(p, (vint)low | (round_to_bf16(x.b) & (int32_t)0xffff0000));
}
template <bool kStream>
LOGPI_INLINE void store_pack(f16_t* p, Pack x) {
  struct {
    vhalf a, b;
  } halves = {float_to_half(x.a), float_to_half(x.b)};
  put<kStream>(p, load<vint>(&halves));
}

// One element, through the same code as a pack so that it has the same bits.
template <class T>
LOGPI_INLINE float to_float(T x) {
  T pack[kPack] = {};
  for (int i = 0; i < kPack; ++i) pack[i] = x;
  return load_pack(pack).a[0];
}
template <class T>
LOGPI_INLINE T from_float(float x) {
  T pack[kPack];
  store_pack<false>(pack, {splat(x), splat(x)});
  return pack[0];
}
