// The CUDA fold of linear_log_probs as Python sees it.
#if defined(LOGPI_HAS_CUDA)
#include "linear_log_probs/bind.h"
#include "linear_log_probs/cuda.h"

namespace logpi {
namespace {

void fold(const TokenLogProbsParams& call, uintptr_t state, uintptr_t targets, bool all, bool top1,
          int device, uintptr_t stream) {
  const LinearLogProbsFold p = fold_params(call, state, targets, all, top1);
  py::gil_scoped_release release;
  linear_log_probs_cuda_fold(p, {device, at<void>(stream)});
}

}  // namespace

void bind_linear_log_probs_cuda(py::module_& m) {
  m.def("linear_log_probs_cuda_fold", flat(&params, &fold));
}

}  // namespace logpi
#endif
