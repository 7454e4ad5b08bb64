// A bin drawn from every row of a slice of logits, with its log-prob, the row's entropy and what
// the bin stands for: an action.
//
//     t_j = log2(e) / T (z_j - max z)     w_j = 2^t_j, rounded to a grid on which sums are exact
//     bin = the first j with w_0 + .. + w_j > u (w_0 + .. + w_last)
//
// 2^t is the same short list of additions and multiplications in double on every backend, each
// rounded once and none fused; so no backend and no order of addition draws another bin.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/rows.h"

namespace logpi {

struct ActionSampling {
  DType dtype;
  const void* logits;  // of the slice: num_bins columns
  Rows rows;
  int64_t num_rows, num_bins;
  double grid;                // 1.5 times the least power of two that is not below num_bins
  const float* temperatures;  // [num_rows], or null for the scalar
  double temperature;
  uint64_t seed;
  int64_t step;
  const int64_t* step_at;  // or null: where the step is
  const int64_t* row_ids;  // [num_rows], or null: 0, 1, ..
  bool greedy;
  int64_t first_id;    // the token id of bin 0
  const float* table;  // [num_dims, num_bins]; row n is of dimension n % num_dims
  int64_t num_dims;
  int num_threads;
  int64_t* token_ids;  // [num_rows] each
  float* log_probs;
  float* entropy;  // null when not asked for
  float* actions;
};

// The first row that has no distribution, if any.
struct ActionSamplingError {
  enum Kind { none, logits, temperature };
  Kind kind = none;
  int64_t row = 0;
  double value = 0;
};

ActionSamplingError action_sampling(const ActionSampling& params);

}  // namespace logpi
