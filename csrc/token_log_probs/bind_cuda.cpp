// The CUDA kernels of token_log_probs as Python sees them.
#if defined(LOGPI_HAS_CUDA)
#include "token_log_probs/bind.h"
#include "token_log_probs/cuda.h"

namespace logpi {
namespace {

void forward(const TokenLogProbsParams& call, uintptr_t log_probs, uintptr_t entropy,
             uintptr_t collision, uintptr_t lse, uintptr_t top1, uintptr_t mean_logit,
             uintptr_t stats, uintptr_t scratch, int device, uintptr_t stream) {
  const TokenLogProbsForward p =
      forward_params(call, log_probs, entropy, collision, lse, top1, mean_logit, stats);
  py::gil_scoped_release release;
  token_log_probs_cuda_forward(p, at<void>(scratch), {device, at<void>(stream)});
}

void backward(const TokenLogProbsParams& call, uintptr_t log_probs, uintptr_t stats,
              uintptr_t grad_log_probs, uintptr_t grad_entropy, uintptr_t grad_logits,
              const py::tuple& grad_sizes, const py::tuple& grad_strides, int64_t row_length,
              uintptr_t scratch, int device, uintptr_t stream) {
  const TokenLogProbsBackward p =
      backward_params(call, log_probs, stats, grad_log_probs, grad_entropy, grad_logits, grad_sizes,
                      grad_strides, row_length);
  py::gil_scoped_release release;
  token_log_probs_cuda_backward(p, at<void>(scratch), {device, at<void>(stream)});
}

void fused(const TokenLogProbsParams& call, uintptr_t log_probs, uintptr_t entropy,
           uintptr_t grad_log_probs, uintptr_t grad_entropy, uintptr_t grad_logits,
           const py::tuple& grad_sizes, const py::tuple& grad_strides, int64_t row_length,
           int device, uintptr_t stream) {
  const TokenLogProbsForward f = forward_params(call, log_probs, entropy, 0, 0, 0, 0, 0);
  const TokenLogProbsBackward b =
      backward_params(call, log_probs, 0, grad_log_probs, grad_entropy, grad_logits, grad_sizes,
                      grad_strides, row_length);
  py::gil_scoped_release release;
  token_log_probs_cuda_fused(f, b, {device, at<void>(stream)});
}

}  // namespace

void bind_token_log_probs_cuda(py::module_& m) {
  m.def("token_log_probs_cuda_forward_scratch", &token_log_probs_cuda_forward_scratch);
  m.def("token_log_probs_cuda_forward", flat(&params, &forward));
  m.def("token_log_probs_cuda_backward", flat(&params, &backward));
  m.def("token_log_probs_cuda_fused", flat(&params, &fused));
}

}  // namespace logpi
#endif
