// A fault planted for the SASS gate: an array indexed at run time lies in local memory.
#include <cstdint>

__global__ void __launch_bounds__(256) spilling_kernel(const uint4* x, float* out, int steps) {
  float bins[32] = {};
  for (int at = 0; at < steps; ++at) {
    const uint4 four = x[at * 256 + threadIdx.x];
    bins[four.x % 32] += __uint_as_float(four.y);
  }
  for (int at = 0; at < 32; ++at) out[at * 256 + threadIdx.x] = bins[at];
}
