// Work over threads. OpenMP's pool is torch's own where both load the same libgomp.
#pragma once

#include <stdint.h>

namespace logpi {

// Below this many elements a call runs on the calling thread: waking a thread costs more.
constexpr int64_t kSerialElements = 1 << 15;

inline int threads_for(int64_t elements, int num_threads) {
  return elements < kSerialElements || num_threads < 1 ? 1 : num_threads;
}

// Rows handed out at a time: enough elements to pay for taking them, few enough to balance.
inline int64_t rows_at_a_time(int64_t elements_per_row) {
  return elements_per_row < 16384 ? 16384 / (elements_per_row + 1) + 1 : 1;
}

}  // namespace logpi
