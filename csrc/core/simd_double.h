// What is worth doubles: sums over lanes, and a softcap. Included where simd.h is.

typedef double vdouble __attribute__((vector_size(kBytes)));
typedef int64_t vlong __attribute__((vector_size(kBytes)));
constexpr int kDoubles = kBytes / 8;

// Between floats and doubles, by name: GCC 12 would convert a part of them at a time.
typedef float vfloat_half __attribute__((vector_size(kBytes / 2)));
LOGPI_INLINE vdouble widened(vfloat_half x) {
#if defined(__AVX512F__)
  return (vdouble)_mm512_cvtps_pd((__m256)x);
#elif defined(__AVX2__)
  return (vdouble)_mm256_cvtps_pd((__m128)x);
#else
  return __builtin_convertvector(x, vdouble);
#endif
}
LOGPI_INLINE vfloat_half narrowed(vdouble x) {
#if defined(__AVX512F__)
  return (vfloat_half)_mm512_cvtpd_ps((__m512d)x);
#elif defined(__AVX2__)
  return (vfloat_half)_mm256_cvtpd_ps((__m256d)x);
#else
  return __builtin_convertvector(x, vfloat_half);
#endif
}

// The lanes of a vector of floats, added in double: a lane of 1.0 swallows nothing of the others.
LOGPI_INLINE void add_lanes(vdouble& to, vfloat x) {
  vfloat_half halves[2];
  __builtin_memcpy(halves, &x, sizeof x);
  to += widened(halves[0]);
  to += widened(halves[1]);
}
LOGPI_INLINE double lanes(vdouble x) {
  double sum = 0;
  for (int i = 0; i < kDoubles; ++i) sum += x[i];
  return sum;
}
LOGPI_INLINE int lanes(vint x) {
  int sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

// 2^t for t in [-1000, 0], to 1e-11.
LOGPI_INLINE vdouble exp2_double(vdouble t) {
  const vdouble magic = vdouble{} + 0x1.8p52;  // the sum's low bits are round(t)
  const vdouble shifted = t + magic;
  const vdouble x = (t - (shifted - magic)) * 0.69314718055994530942;
  vdouble p = vdouble{} + 1.0 / 362880;
  p = p * x + 1.0 / 40320;
  p = p * x + 1.0 / 5040;
  p = p * x + 1.0 / 720;
  p = p * x + 1.0 / 120;
  p = p * x + 1.0 / 24;
  p = p * x + 1.0 / 6;
  p = p * x + 0.5;
  p = p * x + 1.0;
  p = p * x + 1.0;
  return (vdouble)((vlong)p + ((vlong)shifted << 52));
}

// y = cap tanh(scale z / cap) - base and dy/dz, rounded once: in floats the roundings of y would
// show in every probability. base is near the row's maximum, so what counts most is rounded least.
// With t = e^(-2 |scale z / cap|), tanh = (1 - t) / (1 + t) and 1 - tanh^2 = 4 t / (1 + t)^2.
struct Softcap {
  double cap, scale;  // cap 0: none
};
LOGPI_INLINE void squash(Softcap by, vdouble z, vdouble& y, vdouble& slope) {
  const double rate = -2 * by.scale / by.cap * 1.44269504088896340736;
  const vdouble magnitude = z < 0 ? -z : z;
  vdouble exponent = magnitude * rate;
  exponent = exponent < -1000.0 ? vdouble{} - 1000.0 : exponent;  // NaN fails the test and stays
  const vdouble t = exp2_double(exponent), inverse = 1.0 / (1.0 + t);
  y = by.cap * (1.0 - t) * inverse;
  y = z < 0 ? -y : y;
  slope = 4 * by.scale * t * inverse * inverse;
}
LOGPI_INLINE void squash(Softcap by, vfloat z, vfloat& y, vfloat& slope) {
  vfloat_half in[2], out[2], slopes[2];
  __builtin_memcpy(in, &z, sizeof z);
  for (int i = 0; i < 2; ++i) {
    vdouble value, derivative;
    squash(by, widened(in[i]), value, derivative);
    out[i] = narrowed(value);
    slopes[i] = narrowed(derivative);
  }
  __builtin_memcpy(&y, out, sizeof y);
  __builtin_memcpy(&slope, slopes, sizeof slope);
}
