// The CPU kernels of token_sampling as Python sees them.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

#include "core/check.h"
#include "token_sampling/token_sampling.h"

namespace logpi {
namespace {

namespace py = pybind11;

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Rows rows(const py::tuple& sizes, const py::tuple& strides) {
  Rows out{};
  out.dims = static_cast<int>(sizes.size());
  if (out.dims < 1 || out.dims > Rows::kMaxDims) {
    throw ValueError("logits: expected 1 to 4 leading dims, got " + std::to_string(out.dims));
  }
  for (int i = 0; i < out.dims; ++i) {
    out.sizes[i] = sizes[i].cast<int64_t>();
    out.strides[i] = strides[i].cast<int64_t>();
  }
  return out;
}

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

}  // namespace

void bind_token_sampling(py::module_& m) {
  m.def("sample_tokens",
        [](int dtype, uintptr_t logits, const py::tuple& sizes, const py::tuple& strides,
           int64_t num_rows, int64_t vocab_size, uintptr_t row_ids, uintptr_t temperatures,
           uintptr_t top_ks, uintptr_t top_ps, uintptr_t min_ps, double temperature, int64_t top_k,
           double top_p, double min_p, uint64_t seed, uint64_t step, bool greedy, bool truncated,
           int num_threads, uintptr_t token_ids, uintptr_t log_probs, uintptr_t entropy,
           uintptr_t cuts, uintptr_t counts) {
          const TokenSamplingParams p{static_cast<DType>(dtype),
                                      at<const void>(logits),
                                      rows(sizes, strides),
                                      num_rows,
                                      vocab_size,
                                      at<const int64_t>(row_ids),
                                      at<const double>(temperatures),
                                      at<const int64_t>(top_ks),
                                      at<const double>(top_ps),
                                      at<const double>(min_ps),
                                      temperature,
                                      top_k,
                                      top_p,
                                      min_p,
                                      seed,
                                      step,
                                      greedy,
                                      truncated,
                                      num_threads,
                                      at<int64_t>(token_ids),
                                      at<float>(log_probs),
                                      at<float>(entropy),
                                      at<Cut>(cuts),
                                      at<int64_t>(counts)};
          SampleError error;
          {
            py::gil_scoped_release release;
            error = sample_tokens(p);
          }
          if (error.kind != SampleError::none) raise(error);
        });
  m.def("kept_ids", [](int dtype, uintptr_t logits, const py::tuple& sizes,
                       const py::tuple& strides, int64_t num_rows, int64_t vocab_size,
                       uintptr_t cuts, uintptr_t indptr, uintptr_t indices, int num_threads) {
    TokenSamplingParams p{};
    p.dtype = static_cast<DType>(dtype);
    p.logits = at<const void>(logits);
    p.logits_rows = rows(sizes, strides);
    p.num_rows = num_rows;
    p.vocab_size = vocab_size;
    p.cuts = at<Cut>(cuts);
    p.num_threads = num_threads;
    py::gil_scoped_release release;
    kept_ids(p, at<const int64_t>(indptr), at<int32_t>(indices));
  });
}

}  // namespace logpi
