// A fault planted for the SASS gate: rows of 2-byte elements are read one element at a time.
#include <cstdint>

__global__ void __launch_bounds__(256) narrow_kernel(const uint16_t* x, float* out, int columns) {
  float sum = 0.0f;
  for (int at = threadIdx.x; at < columns; at += 256)
    sum += __uint_as_float(static_cast<uint32_t>(x[at]) << 16);
  out[threadIdx.x] = sum;
}
