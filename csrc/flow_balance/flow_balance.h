// FlowRL's loss: three masked sums a sequence, a handful of doubles, and a gradient that is one
// number at all tokens of a sequence.
#pragma once

#include <cstdint>

namespace logpi {

// A piece of a sequence is summed by one thread or block; which tokens it holds depends on their
// place alone.
struct FlowBalanceSums {
  double tokens, log_probs, ref_log_probs, old_log_probs;
};

// What the backward knows of a sequence: d loss / d log_prob at each of its tokens, d loss / d
// log_z.
struct FlowBalanceSlopes {
  double of_token, of_log_z;
};

struct FlowBalanceForward {
  int64_t num_sequences, num_tokens;  // B, T
  const float* log_probs;             // [B, T], unit stride in the last dim, as the next three
  const float* ref_log_probs;
  const float* old_log_probs;
  const bool* loss_mask;
  int64_t log_probs_stride, ref_stride, old_stride, mask_stride;  // of a row, in elements
  const float* rewards;                                           // [B]
  const float* log_z;                                             // [B]
  const double* divisor;  // what the loss is divided by, or null: `count`
  double count, reward_scale;
  double low, high, log_low, log_high;  // bounds of the weight and their logarithms
  int num_threads;                      // of a CPU
  float* loss;
  float* metrics;             // [kFlowBalanceMetrics]
  FlowBalanceSlopes* slopes;  // [B]
};

struct FlowBalanceBackward {
  int64_t num_sequences, num_tokens;
  const bool* loss_mask;
  int64_t mask_stride;
  const FlowBalanceSlopes* slopes;
  const float* grad_loss;  // 0-d
  int num_threads;
  float* grad_log_probs;  // [B, T] contiguous, or null
  float* grad_log_z;      // [B], or null
};

void flow_balance_forward(const FlowBalanceForward& params);
void flow_balance_backward(const FlowBalanceBackward& params);

}  // namespace logpi
