// The CUDA kernels of covariance_clip as Python sees them.
#if defined(LOGPI_HAS_CUDA)
#include "covariance_clip/bind.h"
#include "covariance_clip/cuda.h"

namespace logpi {
namespace {

void run(const CovarianceClip& p, int from, int to, int device, uintptr_t stream) {
  covariance_clip_cuda(p, from, to, device, at<void>(stream));
}

}  // namespace

void bind_covariance_clip_cuda(py::module_& m) {
  m.def("covariance_clip_cuda", released(&covariance_params, &run));
}

}  // namespace logpi
#endif
