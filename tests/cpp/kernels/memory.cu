// Loads and stores where there is nothing, nothing yet, or nothing aligned.
#include "core/launch.cuh"

#include "case.h"

using logpi::dynamic_shared;
using logpi::launch;

namespace {

__global__ void hinted_load(const float* p, uint4* out) {
  out[threadIdx.x] = __ldg((const uint4*)(p + 1));  // FAULT misaligned_hinted_load
}

__global__ void plain_load(const float* p, uint4* out) {
  const uint4* from = (const uint4*)(p + 1);
  out[threadIdx.x] = *from;  // FAULT misaligned_plain_load
}

__global__ void hinted_store(float* p) {
  __stcs((float4*)(p + 2), make_float4(0, 0, 0, 0));  // FAULT misaligned_store
}

__global__ void plain_store(float* p) {
  ((double*)(p + 1))[threadIdx.x] = 0;  // FAULT misaligned_plain_store
}

__global__ void atomic_between_words(char* p) {
  atomicAdd((int*)(p + 2), 1);  // FAULT misaligned_atomic
}

__global__ void forgets_static(float* out, int written) {
  __shared__ float x[32];
  if ((int)threadIdx.x < written) x[threadIdx.x] = 1.0f;
  __syncthreads();
  if (threadIdx.x == 0) {
    float sum = 0;
    for (float v : x) sum += v;  // FAULT uninitialised_static
    out[blockIdx.x] = sum;
  }
}

__global__ void forgets_dynamic(float* out, int written) {
  float* x = dynamic_shared<float>();
  if ((int)threadIdx.x < written) x[threadIdx.x] = 1.0f;
  __syncthreads();
  if (threadIdx.x == 0) {
    float sum = 0;
    for (int i = 0; i < 32; ++i) sum += x[i];  // FAULT uninitialised_dynamic
    out[blockIdx.x] = sum;
  }
}

__global__ void past_static(float* out) {
  __shared__ float x[32];
  x[threadIdx.x + 1] = 1.0f;  // FAULT static_out_of_bounds
  __syncthreads();
  out[threadIdx.x] = x[threadIdx.x];
}

__global__ void past_dynamic(float* out) {
  float* x = dynamic_shared<float>();
  x[threadIdx.x + 1] = 1.0f;  // FAULT dynamic_out_of_bounds
  __syncthreads();
  out[threadIdx.x] = x[threadIdx.x + 1];
}

__global__ void past_read(const float* in, float* out, int64_t size) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  const float x = in[i];  // FAULT global_read_out_of_bounds
  out[i < size ? i : 0] = x;
}

__global__ void past_write(float* out) {
  out[(int64_t)threadIdx.x - 1] = 0;  // FAULT global_write_out_of_bounds
}

__global__ void past_vector(const float* in, float* out, int size) {
  const int vectors = (size + 3) / 4;
  if ((int)threadIdx.x < vectors) {
    const float4 x = __ldg((const float4*)in + threadIdx.x);  // FAULT vector_out_of_bounds
    out[threadIdx.x] = x.x + x.y + x.z + x.w;
  }
}

alignas(16) float aligned_floats[64];

}  // namespace

CASE(misaligned_hinted_load) {
  std::vector<uint4> out(4);
  launch({1, 4, 0, nullptr}, hinted_load, aligned_floats, out.data());
  return "silent";
}
CASE(misaligned_plain_load) {
  std::vector<uint4> out(4);
  launch({1, 4, 0, nullptr}, plain_load, aligned_floats, out.data());
  return "silent";
}
CASE(misaligned_store) {
  launch({1, 4, 0, nullptr}, hinted_store, aligned_floats);
  return "silent";
}
CASE(misaligned_plain_store) {
  launch({1, 4, 0, nullptr}, plain_store, aligned_floats);
  return "silent";
}
CASE(misaligned_atomic) {
  launch({1, 4, 0, nullptr}, atomic_between_words, (char*)aligned_floats);
  return "silent";
}

// The first block fills all and the second forgets one: its memory is not what the first left.
CASE(uninitialised_static) {
  std::vector<float> out(1);
  launch({1, 32, 0, nullptr}, forgets_static, out.data(), 32);
  std::string result = text(out[0]);
  launch({1, 32, 0, nullptr}, forgets_static, out.data(), 31);
  return result + " then " + text(out[0] != out[0]);
}
CASE(uninitialised_dynamic) {
  std::vector<float> out(1);
  launch({1, 32, 128, nullptr}, forgets_dynamic, out.data(), 32);
  std::string result = text(out[0]);
  launch({1, 32, 128, nullptr}, forgets_dynamic, out.data(), 31);
  return result + " then " + text(out[0] != out[0]);
}

CASE(static_out_of_bounds) {
  std::vector<float> out(32);
  launch({1, 32, 0, nullptr}, past_static, out.data());
  return "silent";
}
CASE(dynamic_out_of_bounds) {
  std::vector<float> out(32);
  launch({1, 32, 32 * sizeof(float), nullptr}, past_dynamic, out.data());
  return "silent";
}
CASE(global_read_out_of_bounds) {
  std::vector<float> in(33), out(33);
  launch({2, 32, 0, nullptr}, past_read, in.data(), out.data(), (int64_t)33);
  return "silent";
}
CASE(global_write_out_of_bounds) {
  std::vector<float> out(32);
  launch({1, 32, 0, nullptr}, past_write, out.data());
  return "silent";
}
CASE(vector_out_of_bounds) {
  std::vector<float> in(18), out(18);
  launch({1, 32, 0, nullptr}, past_vector, in.data(), out.data(), 18);
  return "silent";
}
