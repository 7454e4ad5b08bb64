// Rows of a strided tensor: up to four leading dimensions, unit stride in the last.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace logpi {

struct Rows {
  static constexpr int kMaxDims = 4;
  int dims;
  int64_t sizes[kMaxDims];
  int64_t strides[kMaxDims];  // in elements

  // Offset in elements of row n, counted in row-major order over the leading dimensions.
  LOGPI_HOST_DEVICE int64_t offset(int64_t n) const {
    int64_t at = 0;
    for (int i = dims - 1; i > 0; --i) {
      at += (n % sizes[i]) * strides[i];
      n /= sizes[i];
    }
    return at + n * strides[0];
  }
};

}  // namespace logpi
