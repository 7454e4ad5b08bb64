// The CPU body of token_log_probs, compiled once per instruction set.
//
// Forward: a row is cut into segments by V alone (core/softmax_sums.h) and merged in double.
// Backward: one read and one write of the logits.
#include "core/simd_begin.h"
#include "core/parallel.h"
#include "token_log_probs/token_log_probs.h"

#include <stdlib.h>
#include <string.h>

namespace logpi {
namespace LOGPI_ISA {
namespace {

#include "core/simd_double.h"
#include "core/softmax_sums.h"
#include "token_log_probs/row.h"
#include "token_log_probs/sum_rows.h"
#include "token_log_probs/backward.h"

// Gradients above this many bytes go past the caches on their way out.
constexpr int64_t kStreamBytes = 8 << 20;

Want wanted(const TokenLogProbsForward& p) {
  if (p.collision || p.mean_logit) return Want::all;
  return p.entropy || p.stats ? Want::entropy : Want::lse;
}

void write_masked(const TokenLogProbsForward& p, int64_t n) {
  memset(p.log_probs + n * p.ids_per_row, 0, p.ids_per_row * sizeof(float));
  if (p.top1) memset(p.top1 + n * p.ids_per_row, 0, p.ids_per_row);
  float* const fields[] = {p.entropy, p.collision, p.lse, p.mean_logit};
  for (float* field : fields) {
    if (field) field[n] = 0;
  }
  if (p.stats) p.stats[n] = {0, 0, 0};
}

template <class T>
void finish(const TokenLogProbsForward& p, int64_t n, const Row<T>& row, const RowSums& sums) {
  const double log_sum = __builtin_log(sums.sum);
  const double mean_shifted = kLn2 * sums.dot / sums.sum;
  for (int64_t k = 0; k < p.ids_per_row; ++k) {
    const int64_t at = n * p.ids_per_row + k, id = p.token_ids[at];
    const bool inside = row.supports(id);
    const double x = inside ? row.factor * (row.value(id) - sums.ref) : -__builtin_inf();
    const double log_prob = log_sum != log_sum ? log_sum : x - log_sum;
    p.log_probs[at] = (float)(log_prob > 0 ? 0 : log_prob);
    if (p.top1) {
      // The reference is a value of the row: what lies below it cannot be the maximum.
      const bool candidate = inside && log_sum == log_sum && x >= 0;
      p.top1[at] = candidate && row.is_argmax(id);
    }
  }
  if (p.entropy) {
    const double entropy = log_sum - mean_shifted;
    p.entropy[n] = (float)(entropy < 0 ? 0 : entropy);
  }
  if (p.collision) p.collision[n] = (float)(sums.square / (sums.sum * sums.sum));
  if (p.lse) p.lse[n] = (float)(row.factor * sums.ref + log_sum);
  if (p.mean_logit) p.mean_logit[n] = (float)(row.factor * (sums.linear / (double)row.size()));
  if (p.stats) p.stats[n] = {(float)sums.ref, (float)(1 / sums.sum), (float)mean_shifted};
}

template <class T>
RowError forward(const TokenLogProbsForward& p) {
  return sum_rows<T>(
      p, wanted(p), [&](int64_t n) { write_masked(p, n); },
      [&](int64_t n, const Row<T>& row, const RowSums& sums) { finish(p, n, row, sums); });
}

template <class T>
RowError backward(const TokenLogProbsBackward& p) {
  const int threads = threads_for(p.num_rows * p.row_length, p.num_threads);
  const int64_t block = rows_at_a_time(p.row_length), blocks = (p.num_rows + block - 1) / block;
  const bool in_place = p.grad_logits == p.logits;
  const bool stream = !in_place && p.num_rows * p.row_length * (int64_t)sizeof(T) > kStreamBytes;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    BackwardRow<T> worker(p);
#pragma omp for schedule(dynamic)
    for (int64_t b = 0; b < blocks; ++b) {
      for (int64_t n = b * block; n < (b + 1) * block && n < p.num_rows; ++n) {
        stream ? worker.template write<true>(n) : worker.template write<false>(n);
      }
    }
    stream_fence();
  }
  return {};
}

}  // namespace

RowError token_log_probs_forward(const TokenLogProbsForward& p) {
  switch (p.dtype) {
    case DType::float32:
      return forward<float>(p);
    case DType::bfloat16:
      return forward<bf16_t>(p);
    case DType::float16:
      return forward<f16_t>(p);
  }
  return {};
}

RowError token_log_probs_backward(const TokenLogProbsBackward& p) {
  switch (p.dtype) {
    case DType::float32:
      return backward<float>(p);
    case DType::bfloat16:
      return backward<bf16_t>(p);
    case DType::float16:
      return backward<f16_t>(p);
  }
  return {};
}

}  // namespace LOGPI_ISA
}  // namespace logpi
