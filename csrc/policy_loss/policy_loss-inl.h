// The CPU body of policy_loss, compiled once per instruction set: one pass over the tokens, which
// writes the gradient and adds up in double.
#include "core/simd_begin.h"
#include "core/parallel.h"
#include "policy_loss/policy_loss.h"

#include <stdlib.h>
#include <string.h>

namespace logpi {
namespace LOGPI_ISA {
namespace {

#include "core/simd_double.h"
#include "policy_loss/formulas.h"

constexpr int64_t kChunk = 4096;  // tokens: sums of a chunk know nothing of threads
constexpr int kLoss = kPolicyMetrics, kTokens = kLoss + 1, kSums = kTokens + 1;

typedef int8_t vbyte __attribute__((vector_size(kDoubles)));

// The next kDoubles elements; with a count below that, so many and zeros behind.
LOGPI_INLINE vdouble floats_at(const float* p, int count) {
  vfloat_half x = {};
  if (count == kDoubles) {
    x = load<vfloat_half>(p);
  } else {
    memcpy(&x, p, sizeof(float) * count);
  }
  return widened(x);
}
LOGPI_INLINE vlong flags_at(const bool* p, int count) {
  vbyte x = {};
  if (count == kDoubles) {
    x = load<vbyte>(p);
  } else {
    memcpy(&x, p, count);
  }
#if defined(__AVX512F__)  // GCC 12 would convert bytes one by one
  return (vlong)_mm512_cvtepi8_epi64(_mm_loadl_epi64((const __m128i*)&x)) != 0;
#elif defined(__AVX2__)
  int32_t four;
  memcpy(&four, &x, sizeof four);
  return (vlong)_mm256_cvtepi8_epi64(_mm_cvtsi32_si128(four)) != 0;
#else
  return __builtin_convertvector(x, vlong) != 0;
#endif
}
LOGPI_INLINE void write(float* p, vdouble x, int count) {
  const vfloat_half y = narrowed(x);
  if (count == kDoubles) {
    store(p, y);
  } else {
    memcpy(p, &y, sizeof(float) * count);
  }
}

template <Objective kObjective>
LOGPI_INLINE void step(const PolicyLossParams& p, int64_t n, int count, double weight,
                       const float* advantage, vdouble* sums, vlong* counts) {
  const Knobs knobs = {p.knobs[0], p.knobs[1], p.knobs[2]};
  const vlong mask = flags_at(p.loss_mask + n, count);
  Token t;
  t.log_prob = only(mask, floats_at(p.log_probs + n, count));  // NaN outside the mask is none
  t.old = only(mask, floats_at(p.old_log_probs + n, count));
  t.advantage = advantage ? zero() + (double)*advantage : floats_at(p.advantages + n, count);
  t.advantage = only(mask, t.advantage);
  t.selected = p.selection ? flags_at(p.selection + n, count) & mask : vlong{};
  const vdouble d = t.log_prob - t.old;
  t.inside = ~(magnitude(d) > 20.0);
  t.log_ratio = at_most(at_least(d, -20.0), 20.0);
  t.ratio = exp_inside(t.log_ratio);

  Worth w = worth<kObjective>(knobs, t);
  vdouble scale = zero() + weight;
  if (p.importance) scale *= only(mask, floats_at(p.importance + n, count));
  const vdouble policy = only(mask, w.loss * scale);
  vdouble loss = policy, slope = w.slope * scale;
  if (p.ref_log_probs) {
    const vdouble x = only(mask, floats_at(p.ref_log_probs + n, count)) - t.log_prob;
    vdouble value, kl_slope;
    penalty(p.estimator, x, value, kl_slope);
    value = only(mask, value);
    sums[kKl] += value;
    loss += value * (p.kl_coef * weight);
    slope += kl_slope * (p.kl_coef * weight);
  }
  if (p.entropy) {
    const vdouble entropy = only(mask, floats_at(p.entropy + n, count));
    sums[kEntropy] += entropy;
    if (p.entropy_coef != 0) loss -= entropy * (p.entropy_coef * weight);
  }
  if (p.grad_log_probs) write(p.grad_log_probs + n, only(mask, slope), count);
  if (p.grad_entropy) {
    write(p.grad_entropy + n, only(mask, zero() - p.entropy_coef * weight), count);
  }
  sums[kLoss] += loss;
  sums[kPolicyLoss] += policy;
  sums[kRatio] += only(mask, t.ratio);
  sums[kK1] -= t.log_ratio;  // 0 outside the mask, as is the next
  sums[kK3] += exp_rest(t.log_ratio, t.ratio);
  for (int i = 0; i < 3; ++i) counts[i] -= w.fractions[i] & mask;  // True is -1
  counts[3] -= mask;
}

template <Objective kObjective>
void chunk(const PolicyLossParams& p, int64_t begin, int64_t end, double* out) {
  vdouble sums[kSums] = {};
  vlong counts[4] = {};  // of the three fractions and of tokens
  for (int64_t n = begin; n < end;) {
    const int64_t row = n / p.row_length, next = (row + 1) * p.row_length;
    const int64_t stop = next < end ? next : end;
    const double weight = p.weights[p.weight_per_row ? row : 0];
    const float* advantage = p.advantage_per_row ? p.advantages + row : nullptr;
    for (; n + kDoubles <= stop; n += kDoubles) {
      step<kObjective>(p, n, kDoubles, weight, advantage, sums, counts);
    }
    if (n < stop) step<kObjective>(p, n, (int)(stop - n), weight, advantage, sums, counts);
    n = stop;
  }
  for (int i = 0; i < 3; ++i) sums[kFraction + i] = __builtin_convertvector(counts[i], vdouble);
  sums[kTokens] = __builtin_convertvector(counts[3], vdouble);
  for (int i = 0; i < kSums; ++i) out[i] = lanes(sums[i]);
}

template <Objective kObjective>
void run(const PolicyLossParams& p, double* parts, int64_t size, int64_t chunks) {
  // A token costs tens of what an element of logits does.
  const int threads = threads_for(size * 16, p.num_threads);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < chunks; ++i) {
    const int64_t begin = i * kChunk, end = begin + kChunk < size ? begin + kChunk : size;
    chunk<kObjective>(p, begin, end, parts + i * kSums);
  }
}

#define LOGPI_OBJECTIVES(f)                                                                        \
  f(ppo_clip) f(dual_clip) f(cispo) f(sapo) f(dppo_tv) f(dppo_kl) f(dro) f(surrogate) f(reinforce) \
      f(sft) f(clip_cov) f(kl_cov) f(luffy_ratio) f(luffy_power) f(luffy_p) f(luffy_log)           \
          f(luffy_both) f(luffy_root)

void run_one(const PolicyLossParams& p, double* parts, int64_t size, int64_t chunks) {
  switch (p.objective) {
#define LOGPI_CASE(name) \
  case Objective::name:  \
    return run<Objective::name>(p, parts, size, chunks);
    LOGPI_OBJECTIVES(LOGPI_CASE)
#undef LOGPI_CASE
  }
}

}  // namespace

void policy_loss(const PolicyLossParams& p) {
  const int64_t size = p.num_rows * p.row_length, chunks = (size + kChunk - 1) / kChunk;
  double* parts = (double*)calloc((size_t)(chunks > 0 ? chunks : 1) * kSums, sizeof(double));
  run_one(p, parts, size, chunks);
  double total[kSums] = {};
  for (int64_t i = 0; i < chunks; ++i) {  // in their order, whoever made them
    for (int at = 0; at < kSums; ++at) total[at] += parts[i * kSums + at];
  }
  free(parts);
  const double tokens = total[kTokens] > 0 ? total[kTokens] : 1.0;
  for (int at = 0; at < kPolicyMetrics; ++at) {
    p.metrics[at] = (float)(at == kPolicyLoss ? total[at] : total[at] / tokens);
  }
  *p.loss = (float)total[kLoss];
}

}  // namespace LOGPI_ISA
}  // namespace logpi
