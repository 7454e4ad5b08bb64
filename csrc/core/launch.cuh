// What a .cu file needs of CUDA: its headers, a way to launch a kernel, the device to do it on.
//
// Kernels are launched by launch(), never by <<<>>>, which only nvcc can parse: tests/cpp compiles
// the same sources with g++ and runs them on a CPU.
#pragma once

#ifdef LOGPI_CUDA_EMULATOR
#include "emulator.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace logpi {

struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void check_cuda(cudaError_t status, const std::string& what) {
  if (status != cudaSuccess) throw CudaError(what + ": " + cudaGetErrorString(status));
}

struct LaunchConfig {
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
  cudaStream_t stream;
};

template <class... P, class... A>
void launch(const LaunchConfig& at, void (*kernel)(P...), A&&... args) {
  if (at.shared_bytes > (48 << 10)) {
    check_cuda(
        cudaFuncSetAttribute((const void*)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             (int)at.shared_bytes),
        "shared memory of " + std::to_string(at.shared_bytes) + " bytes a block");
  }
  // clang-format off
  kernel<<<at.grid, at.block, at.shared_bytes, at.stream>>>(std::forward<A>(args)...);
  // clang-format on
  check_cuda(cudaGetLastError(), "launch of " + std::to_string(at.grid.x) + " blocks of " +
                                     std::to_string(at.block.x) + " threads");
}

// Zeros, without a kernel.
inline void clear_async(void* p, size_t bytes, cudaStream_t stream) {
  check_cuda(cudaMemsetAsync(p, 0, bytes, stream), "cudaMemsetAsync");
}

template <class T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char logpi_dynamic_shared[];
  return reinterpret_cast<T*>(logpi_dynamic_shared);
}

// The static runtime has its own idea of the current device.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check_cuda(cudaSetDevice(device), "cudaSetDevice");
    changed_ = device != before_;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

inline int device_attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}
inline int multiprocessor_count(int device) {
  return device_attribute(cudaDevAttrMultiProcessorCount, device);
}
inline size_t max_shared_bytes(int device) {
  return (size_t)device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

}  // namespace logpi

#endif
