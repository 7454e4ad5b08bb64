// Addresses and sizes from Python to Params: what the CPU's and CUDA's bindings share.
#pragma once

#include <math.h>

#include "core/bind.h"
#include "flow_balance/flow_balance.h"

namespace logpi {
namespace {

FlowBalanceForward forward_params(int64_t num_sequences, int64_t num_tokens, uintptr_t log_probs,
                                  int64_t log_probs_stride, uintptr_t ref_log_probs,
                                  int64_t ref_stride, uintptr_t old_log_probs, int64_t old_stride,
                                  uintptr_t loss_mask, int64_t mask_stride, uintptr_t rewards,
                                  uintptr_t log_z, uintptr_t divisor, double count,
                                  double reward_scale, double low, double high, int num_threads,
                                  uintptr_t loss, uintptr_t metrics, uintptr_t slopes) {
  FlowBalanceForward p{};
  p.num_sequences = num_sequences;
  p.num_tokens = num_tokens;
  p.log_probs = at<const float>(log_probs);
  p.ref_log_probs = at<const float>(ref_log_probs);
  p.old_log_probs = at<const float>(old_log_probs);
  p.loss_mask = at<const bool>(loss_mask);
  p.log_probs_stride = log_probs_stride;
  p.ref_stride = ref_stride;
  p.old_stride = old_stride;
  p.mask_stride = mask_stride;
  p.rewards = at<const float>(rewards);
  p.log_z = at<const float>(log_z);
  p.divisor = at<const double>(divisor);
  p.count = count;
  p.reward_scale = reward_scale;
  p.low = low;
  p.high = high;
  p.log_low = log(low);  // -inf of 0: no bound
  p.log_high = log(high);
  p.num_threads = num_threads;
  p.loss = at<float>(loss);
  p.metrics = at<float>(metrics);
  p.slopes = at<FlowBalanceSlopes>(slopes);
  return p;
}

FlowBalanceBackward backward_params(int64_t num_sequences, int64_t num_tokens, uintptr_t loss_mask,
                                    int64_t mask_stride, uintptr_t slopes, uintptr_t grad_loss,
                                    int num_threads, uintptr_t grad_log_probs,
                                    uintptr_t grad_log_z) {
  FlowBalanceBackward p{};
  p.num_sequences = num_sequences;
  p.num_tokens = num_tokens;
  p.loss_mask = at<const bool>(loss_mask);
  p.mask_stride = mask_stride;
  p.slopes = at<const FlowBalanceSlopes>(slopes);
  p.grad_loss = at<const float>(grad_loss);
  p.num_threads = num_threads;
  p.grad_log_probs = at<float>(grad_log_probs);
  p.grad_log_z = at<float>(grad_log_z);
  return p;
}

}  // namespace
}  // namespace logpi
