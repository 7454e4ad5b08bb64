// The CPU kernels of token_sampling as Python sees them.
#include "token_sampling/bind.h"

#include <sstream>

namespace logpi {
namespace {

[[noreturn]] void raise(const SampleError& error) {
  static const char* const names[] = {"", "logits", "temperature", "top_k", "top_p", "min_p"};
  static const char* const expected[] = {"",
                                         "a finite largest value and no NaN",
                                         "finite values above 0",
                                         "values of at least 1",
                                         "values above 0, at most 1",
                                         "values in [0, 1]"};
  std::ostringstream message;
  message << names[error.kind] << ": expected " << expected[error.kind] << ", got ";
  if (error.value != error.value) {
    message << "nan";
  } else {
    message << error.value;
  }
  message << " in row " << error.row;
  throw ValueError(message.str());
}

void sample(const TokenSamplingParams& p) {
  const SampleError error = sample_tokens(p);
  if (error.kind != SampleError::none) raise(error);
}

void kept(const TokenSamplingParams& p, uintptr_t indptr, uintptr_t indices) {
  kept_ids(p, at<const int64_t>(indptr), at<int32_t>(indices));
}

}  // namespace

void bind_token_sampling(py::module_& m) {
  m.def("sample_tokens", released(&token_sampling_params, &sample));
  m.def("kept_ids", released(&sampled_rows, &kept));
}

}  // namespace logpi
