// The CUDA kernels of flow_balance as Python sees them.
#if defined(LOGPI_HAS_CUDA)
#include "flow_balance/bind.h"
#include "flow_balance/cuda.h"

namespace logpi {
namespace {

void forward(const FlowBalanceForward& p, uintptr_t scratch, int device, uintptr_t stream) {
  flow_balance_cuda_forward(p, at<void>(scratch), {device, at<void>(stream)});
}

void backward(const FlowBalanceBackward& p, int device, uintptr_t stream) {
  flow_balance_cuda_backward(p, {device, at<void>(stream)});
}

}  // namespace

void bind_flow_balance_cuda(py::module_& m) {
  m.def("flow_balance_cuda_scratch", &flow_balance_cuda_scratch);
  m.def("flow_balance_cuda_forward", released(&forward_params, &forward));
  m.def("flow_balance_cuda_backward", released(&backward_params, &backward));
}

}  // namespace logpi
#endif
