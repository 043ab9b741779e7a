// Which CUDA devices there are, and why not where there are none.
#include "launch.cuh"

namespace int8tile::cuda {
namespace {

cudaError_t count_devices(int* count) {
  const cudaError_t status = cudaGetDeviceCount(count);
  if (status != cudaSuccess) {
    cudaGetLastError();
    *count = 0;
  }
  return status;
}

}  // namespace

int device_count() {
  int count = 0;
  count_devices(&count);
  return count;
}

std::string unavailable() {
  int count = 0;
  const cudaError_t status = count_devices(&count);
  if (status != cudaSuccess) return cudaGetErrorString(status);
  return count > 0 ? "" : "no CUDA device";
}

DeviceFacts device_facts(int device) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "device properties");
  return {properties.name, properties.major, properties.minor, properties.multiProcessorCount};
}

}  // namespace int8tile::cuda
