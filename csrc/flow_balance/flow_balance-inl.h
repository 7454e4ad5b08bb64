// The CPU body of flow_balance, compiled once per instruction set: the sums of pieces of sequences,
// and the gradient, which is one number where the mask is True.
#include "core/simd_begin.h"
#include "core/parallel.h"
#include "flow_balance/flow_balance.h"

namespace logpi {
namespace LOGPI_ISA {
namespace {

#include "core/simd_double.h"

typedef int8_t vbytes __attribute__((vector_size(kLanes)));

// All ones where the mask is True.
LOGPI_INLINE vint lanes_of(const bool* mask) {
  return __builtin_convertvector(load<vbytes>(mask), vint) != 0;
}
LOGPI_INLINE void add_where(vdouble (&to)[2], const float* p, vint inside) {
  const vfloat x = from_bits(load<vint>(p) & inside);  // not times the mask: NaN would stay
  vfloat_half halves[2];
  __builtin_memcpy(halves, &x, sizeof x);
  to[0] += __builtin_convertvector(halves[0], vdouble);
  to[1] += __builtin_convertvector(halves[1], vdouble);
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
  const int threads = threads_for(p.num_sequences * p.num_tokens, p.num_threads);
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
