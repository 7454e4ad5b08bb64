// Addresses and sizes from Python to Params: what the CPU's and CUDA's bindings share.
#pragma once

#include "core/bind.h"
#include "token_sampling/token_sampling.h"

namespace logpi {
namespace {

// What of a call both kernels read.
TokenSamplingParams sampled_rows(int dtype, uintptr_t logits, const py::tuple& sizes,
                                 const py::tuple& strides, int64_t num_rows, int64_t vocab_size,
                                 uintptr_t cuts, int num_threads) {
  TokenSamplingParams p{};
  p.dtype = static_cast<DType>(dtype);
  p.logits = at<const void>(logits);
  p.logits_rows = rows(sizes, strides);
  p.num_rows = num_rows;
  p.vocab_size = vocab_size;
  p.cuts = at<Cut>(cuts);
  p.num_threads = num_threads;
  return p;
}

TokenSamplingParams token_sampling_params(
    int dtype, uintptr_t logits, const py::tuple& sizes, const py::tuple& strides, int64_t num_rows,
    int64_t vocab_size, uintptr_t cuts, int num_threads, uintptr_t row_ids, uintptr_t temperatures,
    uintptr_t top_ks, uintptr_t top_ps, uintptr_t min_ps, double temperature, int64_t top_k,
    double top_p, double min_p, uint64_t seed, uint64_t step, bool greedy, bool truncated,
    uintptr_t token_ids, uintptr_t log_probs, uintptr_t entropy, uintptr_t counts) {
  TokenSamplingParams p =
      sampled_rows(dtype, logits, sizes, strides, num_rows, vocab_size, cuts, num_threads);
  p.row_ids = at<const int64_t>(row_ids);
  p.temperatures = at<const double>(temperatures);
  p.top_ks = at<const int64_t>(top_ks);
  p.top_ps = at<const double>(top_ps);
  p.min_ps = at<const double>(min_ps);
  p.temperature = temperature;
  p.top_k = top_k;
  p.top_p = top_p;
  p.min_p = min_p;
  p.seed = seed;
  p.step = step;
  p.greedy = greedy;
  p.truncated = truncated;
  p.token_ids = at<int64_t>(token_ids);
  p.log_probs = at<float>(log_probs);
  p.entropy = at<float>(entropy);
  p.counts = at<int64_t>(counts);
  return p;
}

}  // namespace
}  // namespace logpi
