// log p(token), entropy and their kin for every row of a strided matrix of logits.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/rows.h"

namespace logpi {

// What forward and backward both need to know of a call. Addresses are the caller's; null = absent.
struct TokenLogProbsParams {
  DType dtype;
  const void* logits;
  Rows logits_rows;
  int64_t num_rows;
  int64_t vocab_size;        // ids and support lie in [0, vocab_size)
  const int64_t* token_ids;  // [num_rows, ids_per_row]
  int64_t ids_per_row;
  const bool* loss_mask;      // [num_rows]
  const float* temperatures;  // [num_rows], or null for the scalar
  double temperature;
  int64_t support_begin, support_end;  // contiguous support
  const int64_t* keep_indptr;          // [num_rows + 1], or null
  const int32_t* keep_indices;
  int64_t num_keep_indices;
  double softcap;  // 0: none
  double logit_scale;
  int num_threads;
  // Where the tensor is a tile of the rows: its first column. Addresses are those of column 0,
  // which is then not there; ids and support are the row's own, and the support lies inside the
  // tile.
  int64_t first_column;
};

// What the backward keeps of a row: its reference (a value near its maximum), 1 / sum e^(x - ref)
// and the mean of x - ref under p.
struct RowStats {
  float ref, inv_sum, mean_shifted;
};

struct TokenLogProbsForward : TokenLogProbsParams {
  float* log_probs;  // [num_rows, ids_per_row]
  float* entropy;    // [num_rows] each, null when not asked for
  float* collision;
  float* lse;
  bool* top1;  // [num_rows, ids_per_row]
  float* mean_logit;
  RowStats* stats;
};

struct TokenLogProbsBackward : TokenLogProbsParams {
  const float* log_probs;       // as the forward returned them
  const RowStats* stats;        // likewise
  const float* grad_log_probs;  // [num_rows, ids_per_row], or null
  const float* grad_entropy;    // [num_rows], or null
  void* grad_logits;            // may be the logits themselves
  Rows grad_rows;
  int64_t row_length;  // columns of a row of grad_logits from first_column on, padding included
};

// The first bad row met, if any; what a kernel may not throw from inside a parallel region.
struct RowError {
  enum Kind { none, token_id, temperature, keep_indptr, keep_id, keep_empty, keep_repeat };
  Kind kind = none;
  int64_t row = 0;
  double value = 0;
};

RowError token_log_probs_forward(const TokenLogProbsForward& params);
RowError token_log_probs_backward(const TokenLogProbsBackward& params);

}  // namespace logpi
