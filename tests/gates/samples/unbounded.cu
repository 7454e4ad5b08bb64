// A fault planted for the SASS gate: the compiler is not told how large a block is.
__global__ void unbounded_kernel(const float4* x, float* out) {
  out[threadIdx.x] = x[threadIdx.x].x;
}
