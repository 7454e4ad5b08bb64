// One token drawn from every row of a strided matrix of logits, after temperature and truncation.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/rows.h"

namespace logpi {

// What a row keeps: logits above `value`, and of those equal to it the first `ties` by id.
struct Cut {
  float value;
  int32_t ties;
};

struct TokenSamplingParams {
  DType dtype;
  const void* logits;
  Rows logits_rows;
  int64_t num_rows, vocab_size;
  const int64_t* row_ids;      // [num_rows], or null for 0, 1, ..
  const double* temperatures;  // [num_rows], or null for the scalar; so are the next three
  const int64_t* top_ks;
  const double* top_ps;
  const double* min_ps;
  double temperature;
  int64_t top_k;
  double top_p, min_p;
  uint64_t seed, step;
  bool greedy, truncated;
  int num_threads;
  int64_t* token_ids;  // [num_rows] each from here on
  float* log_probs;
  float* entropy;   // or null
  Cut* cuts;        // or null, with the next
  int64_t* counts;  // how many ids a row keeps
};

// The first bad row, if any; what a kernel may not throw from inside a parallel region.
struct SampleError {
  enum Kind { none, logits, temperature, top_k, top_p, min_p };
  Kind kind = none;
  int64_t row = 0;
  double value = 0;
};

SampleError sample_tokens(const TokenSamplingParams& params);
// The kept ids of every row, rising, from what sample_tokens left in `cuts`.
void kept_ids(const TokenSamplingParams& params, const int64_t* indptr, int32_t* indices);

}  // namespace logpi
