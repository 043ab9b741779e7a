// Launching kernels on the caller's stream, and CUDA errors as exceptions.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "int8tile/check.hpp"
#include "int8tile/cuda.hpp"

namespace int8tile::cuda {

/// Throws std::runtime_error with the runtime's text.
inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // or the next call would report it again
  throw std::runtime_error(concat("int8tile: CUDA: ", what, ": ", cudaGetErrorString(status), " (",
                                  cudaGetErrorName(status), ")"));
}

inline cudaStream_t handle(const Stream& stream) {
  return static_cast<cudaStream_t>(stream.handle);
}

/// Makes the stream's device current while it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(const Stream& stream) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != stream.device) {
      check(cudaSetDevice(stream.device), "cudaSetDevice");
      changed_ = true;
    }
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

template <class... Parameters, class... Arguments>
void launch(const Stream& stream, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            std::size_t shared_bytes, Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = handle(stream);
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), "launch");
}

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kLinearThreads = 256;  // of kernels that take one element a thread

/// One thread per element of [0, count).
inline dim3 linear_grid(int64_t count) {
  return dim3(static_cast<unsigned>(ceil_div(count, kLinearThreads)));
}

__device__ inline int64_t linear_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

/// Whether the work of this grid is to be skipped; see Quantization::wanted.
__device__ inline bool skipped(const uint32_t* wanted) { return wanted && *wanted == 0; }

inline void fill_zero(void* data, int64_t bytes, const Stream& stream) {
  if (bytes > 0)
    check(cudaMemsetAsync(data, 0, static_cast<std::size_t>(bytes), handle(stream)), "memset");
}

}  // namespace int8tile::cuda
