// Element types as they cross from Python, and as the kernels name them.
#pragma once

#include <cstdint>

namespace logpi {

enum class DType : int { float32 = 0, bfloat16 = 1, float16 = 2 };

struct bf16_t {
  uint16_t bits;
};
struct f16_t {
  uint16_t bits;
};

}  // namespace logpi
