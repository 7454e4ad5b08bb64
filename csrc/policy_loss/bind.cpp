// The CPU kernel of policy_loss as Python sees it.
#include "core/bind.h"
#include "policy_loss/policy_loss.h"

namespace logpi {
namespace {

void bound(uintptr_t log_probs, uintptr_t entropy, uintptr_t old_log_probs, uintptr_t advantages,
           uintptr_t loss_mask, uintptr_t weights, uintptr_t ref_log_probs, uintptr_t importance,
           uintptr_t selection, int kind, double a, double b, double c, int estimator,
           double kl_coef, double entropy_coef, int64_t num_rows, int64_t row_length,
           bool advantage_per_row, bool weight_per_row, uintptr_t grad_log_probs,
           uintptr_t grad_entropy, uintptr_t loss, uintptr_t metrics, int num_threads) {
  PolicyLossParams p{};
  p.objective = static_cast<Objective>(kind);
  p.knobs[0] = a;
  p.knobs[1] = b;
  p.knobs[2] = c;
  p.estimator = static_cast<KlEstimator>(estimator);
  p.kl_coef = kl_coef;
  p.entropy_coef = entropy_coef;
  p.num_rows = num_rows;
  p.row_length = row_length;
  p.log_probs = at<const float>(log_probs);
  p.entropy = at<const float>(entropy);
  p.old_log_probs = at<const float>(old_log_probs);
  p.advantages = at<const float>(advantages);
  p.advantage_per_row = advantage_per_row;
  p.loss_mask = at<const bool>(loss_mask);
  p.weights = at<const double>(weights);
  p.weight_per_row = weight_per_row;
  p.ref_log_probs = at<const float>(ref_log_probs);
  p.importance = at<const float>(importance);
  p.selection = at<const bool>(selection);
  p.grad_log_probs = at<float>(grad_log_probs);
  p.grad_entropy = at<float>(grad_entropy);
  p.loss = at<float>(loss);
  p.metrics = at<float>(metrics);
  p.num_threads = num_threads;
  py::gil_scoped_release release;
  policy_loss(p);
}

}  // namespace

void bind_policy_loss(py::module_& m) { m.def("policy_loss", &bound); }

}  // namespace logpi
