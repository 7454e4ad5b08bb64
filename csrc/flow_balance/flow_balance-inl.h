// The CPU body of flow_balance, compiled once per instruction set: the sums of pieces of sequences,
// and the gradient, which is one number where the mask is True.
#include "core/simd_begin.h"
#include "core/parallel.h"
#include "flow_balance/flow_balance.h"

namespace logpi {
namespace LOGPI_ISA {
namespace {

#include "core/simd_double.h"

// All ones where the mask is True. GCC 12 would convert bytes, and floats to doubles, one by one.
LOGPI_INLINE vint lanes_of(const bool* mask) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128((const __m128i*)mask);
  return (vint)_mm512_movm_epi32(_mm_test_epi8_mask(bytes, bytes));
#elif defined(__AVX2__)
  const __m256i words = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)mask));
  return (vint)words != 0;
#elif defined(__SSE2__)
  const __m128i zero = _mm_setzero_si128();
  int32_t four;
  __builtin_memcpy(&four, mask, sizeof four);
  const __m128i bytes = _mm_cvtsi32_si128(four);
  return (vint)_mm_unpacklo_epi16(_mm_unpacklo_epi8(bytes, zero), zero) != 0;
#else
  typedef int8_t vbytes __attribute__((vector_size(kLanes)));
  return __builtin_convertvector(load<vbytes>(mask), vint) != 0;
#endif
}
LOGPI_INLINE void add_where(vdouble (&to)[2], const float* p, vint inside) {
#if defined(__AVX512F__)
  const __mmask16 some = _mm512_movepi32_mask((__m512i)inside);
  to[0] += (vdouble)_mm512_maskz_cvtps_pd((__mmask8)some, _mm256_loadu_ps(p));
  to[1] += (vdouble)_mm512_maskz_cvtps_pd((__mmask8)(some >> 8), _mm256_loadu_ps(p + 8));
#else
  const vfloat x = from_bits(load<vint>(p) & inside);  // not times the mask: NaN would stay
#if defined(__AVX2__)
  to[0] += (vdouble)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)x));
  to[1] += (vdouble)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)x, 1));
#elif defined(__SSE2__)
  to[0] += (vdouble)_mm_cvtps_pd((__m128)x);
  to[1] += (vdouble)_mm_cvtps_pd(_mm_movehl_ps((__m128)x, (__m128)x));
#else
  vfloat_half halves[2];
  __builtin_memcpy(halves, &x, sizeof x);
  to[0] += __builtin_convertvector(halves[0], vdouble);
  to[1] += __builtin_convertvector(halves[1], vdouble);
#endif
#endif
}

// Every term in double: a sum of 30k tokens in float would lose its last three digits.
FlowBalanceSums sums_of(const float* log_probs, const float* ref, const float* old,
                        const bool* mask, int64_t size) {
  vdouble a[2] = {}, b[2] = {}, c[2] = {};
  vint count = {};
  int64_t t = 0;
  for (; t + kLanes <= size; t += kLanes) {
    const vint inside = lanes_of(mask + t);
    count -= inside;
    add_where(a, log_probs + t, inside);
    add_where(b, ref + t, inside);
    add_where(c, old + t, inside);
  }
  FlowBalanceSums out = {(double)lanes(count), lanes(a[0] + a[1]), lanes(b[0] + b[1]),
                         lanes(c[0] + c[1])};
  for (; t < size; ++t) {
    if (!mask[t]) continue;
    out.tokens += 1;
    out.log_probs += (double)log_probs[t];
    out.ref_log_probs += (double)ref[t];
    out.old_log_probs += (double)old[t];
  }
  return out;
}

void spread(const bool* mask, float value, float* out, int64_t size) {
  const vint everywhere = bits(splat(value));
  int64_t t = 0;
  for (; t + kLanes <= size; t += kLanes) store(out + t, everywhere & lanes_of(mask + t));
  for (; t < size; ++t) out[t] = mask[t] ? value : 0.0f;
}

}  // namespace

void flow_balance_sums(const FlowBalanceForward& p, int64_t piece, int64_t pieces,
                       FlowBalanceSums* sums) {
  const int threads = threads_for(p.num_sequences * p.num_tokens, p.num_threads);
  const int64_t all = p.num_sequences * pieces;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t n = 0; n < all; ++n) {
    const int64_t i = n / pieces, begin = n % pieces * piece, rest = p.num_tokens - begin;
    sums[n] = sums_of(p.log_probs + i * p.log_probs_stride + begin,
                      p.ref_log_probs + i * p.ref_stride + begin,
                      p.old_log_probs + i * p.old_stride + begin,
                      p.loss_mask + i * p.mask_stride + begin, rest < piece ? rest : piece);
  }
}

void flow_balance_gradient(const FlowBalanceBackward& p, int64_t piece, int64_t pieces) {
  // A store a token: a thread is worth waking for twice as many as of the sums.
  const int threads = threads_for(p.num_sequences * p.num_tokens / 2, p.num_threads);
  const int64_t all = p.num_sequences * pieces;
  const double upstream = (double)*p.grad_loss;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t n = 0; n < all; ++n) {
    const int64_t i = n / pieces, begin = n % pieces * piece, rest = p.num_tokens - begin;
    spread(p.loss_mask + i * p.mask_stride + begin, (float)(p.slopes[i].of_token * upstream),
           p.grad_log_probs + i * p.num_tokens + begin, rest < piece ? rest : piece);
  }
}

}  // namespace LOGPI_ISA
}  // namespace logpi
