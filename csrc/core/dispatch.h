// From values known at run time to kernels compiled for them.
#pragma once

#include <string>
#include <type_traits>

#include "core/check.h"
#include "core/dtype.h"

namespace logpi {

// f(T()) with the element type.
template <class F>
void with_element(DType dtype, const F& f) {
  switch (dtype) {
    case DType::float32:
      return f(float());
    case DType::bfloat16:
      return f(bf16_t());
    case DType::float16:
      return f(f16_t());
  }
}

// f(std::true_type()) or f(std::false_type()).
template <class F>
void with_bool(bool value, const F& f) {
  return value ? f(std::true_type()) : f(std::false_type());
}

// A grid has at most 2^31 - 1 blocks.
inline void check_rows(int64_t num_rows) {
  if (num_rows > INT32_MAX) {
    throw ValueError("logits: expected at most 2^31 - 1 rows, got " + std::to_string(num_rows));
  }
}

}  // namespace logpi
