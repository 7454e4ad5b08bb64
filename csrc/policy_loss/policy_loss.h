// The loss of a policy update, its gradient and its metrics from per-token numbers.
#pragma once

#include <cstdint>

namespace logpi {

// python/logpi/ops/policy_loss/encoding.py has the same numbers.
enum class Objective : int {
  ppo_clip,
  dual_clip,
  cispo,
  sapo,
  dppo_tv,
  dppo_kl,
  dro,
  surrogate,
  reinforce,
  sft,
  clip_cov,
  kl_cov,
  luffy_ratio,  // p / (p + c)
  luffy_power,  // p^c
  luffy_p,
  luffy_log,
  luffy_both,  // p + log p
  luffy_root,
};

enum class KlEstimator : int { none = -1, k1, k2, k3, abs, k1_plus, k3_plus, abs_plus };

// Where a metric stands; three fractions of tokens begin at kFraction.
enum PolicyMetric : int {
  kPolicyLoss,
  kRatio,
  kK1,
  kK3,
  kFraction,
  kKl = kFraction + 3,
  kEntropy,
  kPolicyMetrics,
};

struct PolicyLossParams {
  Objective objective;
  double knobs[3];  // in the order of the objective's fields
  KlEstimator estimator;
  double kl_coef;
  double entropy_coef;
  int64_t num_rows;        // B
  int64_t row_length;      // T
  const float* log_probs;  // [B, T], as all the others
  const float* entropy;    // or null
  const float* old_log_probs;
  const float* advantages;  // [B, T], or [B] with advantage_per_row
  bool advantage_per_row;
  const bool* loss_mask;
  const double* weights;  // [B], or [1] without weight_per_row
  bool weight_per_row;
  const float* ref_log_probs;  // or null
  const float* importance;     // or null
  const bool* selection;       // or null
  float* grad_log_probs;       // [B, T] or null
  float* grad_entropy;         // [B, T] or null
  float* loss;
  float* metrics;  // [kPolicyMetrics]
  int num_threads;
};

void policy_loss(const PolicyLossParams& params);

}  // namespace logpi
