// The CUDA kernels of token_sampling as Python sees them.
#if defined(LOGPI_HAS_CUDA)
#include "token_sampling/bind.h"
#include "token_sampling/cuda.h"

namespace logpi {
namespace {

void sample(const TokenSamplingParams& p, uintptr_t step_at, int device, uintptr_t stream) {
  sample_tokens_cuda(p, at<const int64_t>(step_at), {device, at<void>(stream)});
}

void kept(const TokenSamplingParams& p, uintptr_t indptr, uintptr_t indices, int device,
          uintptr_t stream) {
  kept_ids_cuda(p, at<const int64_t>(indptr), at<int32_t>(indices), {device, at<void>(stream)});
}

}  // namespace

void bind_token_sampling_cuda(py::module_& m) {
  m.def("sample_tokens_cuda", released(&token_sampling_params, &sample));
  m.def("kept_ids_cuda", released(&sampled_rows, &kept));
}

}  // namespace logpi
#endif
