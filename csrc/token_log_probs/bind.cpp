// The CPU kernels of token_log_probs as Python sees them.
#include "token_log_probs/bind.h"

namespace logpi {
namespace {

void forward(const TokenLogProbsParams& call, uintptr_t log_probs, uintptr_t entropy,
             uintptr_t collision, uintptr_t lse, uintptr_t top1, uintptr_t mean_logit,
             uintptr_t stats) {
  const TokenLogProbsForward p =
      forward_params(call, log_probs, entropy, collision, lse, top1, mean_logit, stats);
  if (p.keep_indptr && (p.keep_indptr[0] != 0 || p.keep_indptr[p.num_rows] > p.num_keep_indices)) {
    throw ValueError("support.indptr: expected to rise from 0 to at most " +
                     std::to_string(p.num_keep_indices) + " (the number of indices), got " +
                     std::to_string(p.keep_indptr[0]) + " to " +
                     std::to_string(p.keep_indptr[p.num_rows]));
  }
  RowError error;
  {
    py::gil_scoped_release release;
    error = token_log_probs_forward(p);
  }
  if (error.kind != RowError::none) raise(error, call);
}

void backward(const TokenLogProbsParams& call, uintptr_t log_probs, uintptr_t stats,
              uintptr_t grad_log_probs, uintptr_t grad_entropy, uintptr_t grad_logits,
              const py::tuple& grad_sizes, const py::tuple& grad_strides, int64_t row_length) {
  const TokenLogProbsBackward p =
      backward_params(call, log_probs, stats, grad_log_probs, grad_entropy, grad_logits, grad_sizes,
                      grad_strides, row_length);
  py::gil_scoped_release release;
  token_log_probs_backward(p);
}

}  // namespace

void bind_token_log_probs(py::module_& m) {
  m.def("token_log_probs_forward", flat(&params, &forward));
  m.def("token_log_probs_backward", flat(&params, &backward));
}

}  // namespace logpi
