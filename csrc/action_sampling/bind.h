// Addresses and sizes from Python to Params: what the CPU's and CUDA's bindings share.
#pragma once

#include "action_sampling/action_sampling.h"
#include "core/bind.h"

namespace logpi {
namespace {

ActionSampling action_sampling_params(int dtype, uintptr_t logits, const py::tuple& sizes,
                                      const py::tuple& strides, int64_t num_rows, int64_t num_bins,
                                      double grid, uintptr_t temperatures, double temperature,
                                      uint64_t seed, int64_t step, uintptr_t step_at,
                                      uintptr_t row_ids, bool greedy, int64_t first_id,
                                      uintptr_t table, int64_t num_dims, int num_threads,
                                      uintptr_t token_ids, uintptr_t log_probs, uintptr_t entropy,
                                      uintptr_t actions) {
  ActionSampling p{};
  p.dtype = static_cast<DType>(dtype);
  p.logits = at<const void>(logits);
  p.rows = rows(sizes, strides);
  p.num_rows = num_rows;
  p.num_bins = num_bins;
  p.grid = grid;
  p.temperatures = at<const float>(temperatures);
  p.temperature = temperature;
  p.seed = seed;
  p.step = step;
  p.step_at = at<const int64_t>(step_at);
  p.row_ids = at<const int64_t>(row_ids);
  p.greedy = greedy;
  p.first_id = first_id;
  p.table = at<const float>(table);
  p.num_dims = num_dims;
  p.num_threads = num_threads;
  p.token_ids = at<int64_t>(token_ids);
  p.log_probs = at<float>(log_probs);
  p.entropy = at<float>(entropy);
  p.actions = at<float>(actions);
  return p;
}

}  // namespace
}  // namespace logpi
