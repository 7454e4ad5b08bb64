// What is worth doubles: sums over lanes, and a softcap. Included where simd.h is.

typedef double vdouble __attribute__((vector_size(kBytes)));
typedef int64_t vlong __attribute__((vector_size(kBytes)));
constexpr int kDoubles = kBytes / 8;

// The lanes of a vector of floats, added in double: a lane of 1.0 swallows nothing of the others.
typedef float vfloat_half __attribute__((vector_size(kBytes / 2)));
LOGPI_INLINE void add_lanes(vdouble& to, vfloat x) {
  vfloat_half halves[2];
  __builtin_memcpy(halves, &x, sizeof x);
  to += __builtin_convertvector(halves[0], vdouble);
  to += __builtin_convertvector(halves[1], vdouble);
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
    squash(by, __builtin_convertvector(in[i], vdouble), value, derivative);
    out[i] = __builtin_convertvector(value, vfloat_half);
    slopes[i] = __builtin_convertvector(derivative, vfloat_half);
  }
  __builtin_memcpy(&y, out, sizeof y);
  __builtin_memcpy(&slope, slopes, sizeof slope);
}
