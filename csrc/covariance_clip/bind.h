// Addresses and sizes from Python: what the CPU's and CUDA's bindings share.
#pragma once

#include "core/bind.h"
#include "covariance_clip/covariance_clip.h"

namespace logpi {
namespace {

CovarianceClip covariance_params(uintptr_t log_probs, uintptr_t advantages, uintptr_t loss_mask,
                                 uintptr_t exclude, int64_t num_tokens, int rule, double fraction,
                                 float lower, float upper, uint64_t seed, int64_t step,
                                 uintptr_t step_at, uintptr_t head, uintptr_t counts,
                                 uintptr_t keys, uintptr_t places, uintptr_t out, int num_threads) {
  CovarianceClip p{};
  p.log_probs = at<const float>(log_probs);
  p.advantages = at<const float>(advantages);
  p.loss_mask = at<const bool>(loss_mask);
  p.exclude = at<const bool>(exclude);
  p.num_tokens = num_tokens;
  p.rule = static_cast<CovarianceRule>(rule);
  p.fraction = fraction;
  p.lower = lower;
  p.upper = upper;
  p.seed = seed;
  p.step = step;
  p.step_at = at<const int64_t>(step_at);
  p.head = at<CovarianceHead>(head);
  p.counts = at<int32_t>(counts);
  p.keys = at<uint32_t>(keys);
  p.places = at<int32_t>(places);
  p.out = at<void>(out);
  p.num_threads = num_threads;
  return p;
}

}  // namespace
}  // namespace logpi
