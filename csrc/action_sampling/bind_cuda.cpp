// The CUDA kernel of action_sampling as Python sees it.
#if defined(LOGPI_HAS_CUDA)
#include "action_sampling/bind.h"
#include "action_sampling/cuda.h"

namespace logpi {
namespace {

void run(const ActionSampling& p, int device, uintptr_t stream) {
  action_sampling_cuda(p, {device, at<void>(stream)});
}

}  // namespace

void bind_action_sampling_cuda(py::module_& m) {
  m.def("action_sampling_cuda", released(&action_sampling_params, &run));
}

}  // namespace logpi
#endif
