// Addresses and sizes from Python: what the CPU's and CUDA's bindings share.
#pragma once

#include <pybind11/pybind11.h>

#include "covariance_clip/covariance_clip.h"

namespace logpi {
namespace {

namespace py = pybind11;

// Addresses are integers; 0 stands for an argument that is absent.
CovarianceClip covariance_params(uintptr_t log_probs, uintptr_t advantages, uintptr_t loss_mask,
                                 uintptr_t exclude, int64_t num_tokens, int rule, double fraction,
                                 float lower, float upper, uint64_t seed, int64_t step,
                                 uintptr_t step_at, uintptr_t head, uintptr_t counts,
                                 uintptr_t keys, uintptr_t places, uintptr_t out, int num_threads) {
  CovarianceClip p{};
  p.log_probs = reinterpret_cast<const float*>(log_probs);
  p.advantages = reinterpret_cast<const float*>(advantages);
  p.loss_mask = reinterpret_cast<const bool*>(loss_mask);
  p.exclude = reinterpret_cast<const bool*>(exclude);
  p.num_tokens = num_tokens;
  p.rule = static_cast<CovarianceRule>(rule);
  p.fraction = fraction;
  p.lower = lower;
  p.upper = upper;
  p.seed = seed;
  p.step = step;
  p.step_at = reinterpret_cast<const int64_t*>(step_at);
  p.head = reinterpret_cast<CovarianceHead*>(head);
  p.counts = reinterpret_cast<int32_t*>(counts);
  p.keys = reinterpret_cast<uint32_t*>(keys);
  p.places = reinterpret_cast<int32_t*>(places);
  p.out = reinterpret_cast<void*>(out);
  p.num_threads = num_threads;
  return p;
}

// Python passes the arguments of covariance_params() and then those of f.
template <class... Call, class... Rest>
auto flat(CovarianceClip (*make)(Call...), void (*f)(const CovarianceClip&, Rest...)) {
  return [make, f](Call... call, Rest... rest) {
    const CovarianceClip p = make(call...);
    py::gil_scoped_release release;
    f(p, rest...);
  };
}

}  // namespace
}  // namespace logpi
