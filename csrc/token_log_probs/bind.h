// Addresses and sizes from Python to Params: what the CPU's and CUDA's bindings share. Nothing here
// allocates or reads a tensor.
#pragma once

#include <sstream>

#include "core/bind.h"
#include "token_log_probs/token_log_probs.h"

namespace logpi {
namespace {

// The address that column 0 would have, of a tensor that begins at a later one.
template <class T>
T* column_zero(uintptr_t address, const TokenLogProbsParams& p) {
  const int64_t width = p.dtype == DType::float32 ? 4 : 2;
  return address ? at<T>(address - p.first_column * width) : nullptr;
}

TokenLogProbsParams params(int dtype, uintptr_t logits, const py::tuple& sizes,
                           const py::tuple& strides, int64_t num_rows, int64_t vocab_size,
                           uintptr_t token_ids, int64_t ids_per_row, uintptr_t loss_mask,
                           uintptr_t temperatures, double temperature, int64_t support_begin,
                           int64_t support_end, uintptr_t keep_indptr, uintptr_t keep_indices,
                           int64_t num_keep_indices, double softcap, double logit_scale,
                           int num_threads, int64_t first_column) {
  TokenLogProbsParams p{};
  p.dtype = static_cast<DType>(dtype);
  p.first_column = first_column;
  p.logits = column_zero<const void>(logits, p);
  p.logits_rows = rows(sizes, strides);
  p.num_rows = num_rows;
  p.vocab_size = vocab_size;
  p.token_ids = at<const int64_t>(token_ids);
  p.ids_per_row = ids_per_row;
  p.loss_mask = at<const bool>(loss_mask);
  p.temperatures = at<const float>(temperatures);
  p.temperature = temperature;
  p.support_begin = support_begin;
  p.support_end = support_end;
  p.keep_indptr = at<const int64_t>(keep_indptr);
  p.keep_indices = at<const int32_t>(keep_indices);
  p.num_keep_indices = num_keep_indices;
  p.softcap = softcap;
  p.logit_scale = logit_scale;
  p.num_threads = num_threads;
  return p;
}

[[maybe_unused]] TokenLogProbsForward forward_params(const TokenLogProbsParams& call,
                                                     uintptr_t log_probs, uintptr_t entropy,
                                                     uintptr_t collision, uintptr_t lse,
                                                     uintptr_t top1, uintptr_t mean_logit,
                                                     uintptr_t stats) {
  TokenLogProbsForward p{};
  static_cast<TokenLogProbsParams&>(p) = call;
  p.log_probs = at<float>(log_probs);
  p.entropy = at<float>(entropy);
  p.collision = at<float>(collision);
  p.lse = at<float>(lse);
  p.top1 = at<bool>(top1);
  p.mean_logit = at<float>(mean_logit);
  p.stats = at<RowStats>(stats);
  return p;
}

[[maybe_unused]] TokenLogProbsBackward backward_params(
    const TokenLogProbsParams& call, uintptr_t log_probs, uintptr_t stats, uintptr_t grad_log_probs,
    uintptr_t grad_entropy, uintptr_t grad_logits, const py::tuple& grad_sizes,
    const py::tuple& grad_strides, int64_t row_length) {
  TokenLogProbsBackward p{};
  static_cast<TokenLogProbsParams&>(p) = call;
  p.log_probs = at<const float>(log_probs);
  p.stats = at<const RowStats>(stats);
  p.grad_log_probs = at<const float>(grad_log_probs);
  p.grad_entropy = at<const float>(grad_entropy);
  p.grad_logits = column_zero<void>(grad_logits, p);
  p.grad_rows = rows(grad_sizes, grad_strides);
  p.row_length = row_length;
  return p;
}

// What a CPU kernel found wrong with a row.
[[noreturn]] inline void raise(const RowError& error, const TokenLogProbsParams& p) {
  std::ostringstream message;
  const std::string ids = "expected ids in [0, " + std::to_string(p.vocab_size) + "), got ";
  switch (error.kind) {
    case RowError::token_id:
      message << "token_ids: " << ids << static_cast<int64_t>(error.value);
      break;
    case RowError::temperature:
      message << "temperature: expected finite values above 0, got " << error.value;
      break;
    case RowError::keep_indptr:
      message << "support.indptr: expected to rise from 0 to at most " << p.num_keep_indices
              << " (the number of indices), got " << static_cast<int64_t>(error.value);
      break;
    case RowError::keep_id:
      message << "support.indices: " << ids << static_cast<int64_t>(error.value);
      break;
    case RowError::keep_empty:
      message << "support: expected at least one kept id, got none";
      break;
    default:
      message << "support.indices: expected each id once, got repeats";
  }
  message << " in row " << error.row;
  throw ValueError(message.str());
}

}  // namespace
}  // namespace logpi
