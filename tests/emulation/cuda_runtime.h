// A CUDA runtime on one host thread, so that tests can run the kernels' own code without a GPU.
// Threads of a block are fibers that meet at barriers; device memory is host memory.
#pragma once

#include <ucontext.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <tuple>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr unsigned kWarp = 32;
constexpr std::size_t kStackBytes = 64 << 10;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool done = false;
  uint64_t barriers = 0, exchanges = 0;
};

inline std::vector<Fiber> fibers;
inline std::vector<uint64_t> slots;  // what lanes of a warp show each other
inline ucontext_t scheduler;
inline unsigned live = 0, current = 0;  // threads of the block, and the one that runs
inline const std::function<void()>* body = nullptr;
inline unsigned blocks = 0;   // that have run
inline bool trapped = false;  // a thread has ended the kernel

inline void yield() { swapcontext(&fibers[current].context, &scheduler); }

inline void enter() {
  (*body)();
  fibers[current].done = true;
  yield();
}

// Waits until the fibers [begin, end) have passed `counter` as often as this one, or ended.
inline void meet(uint64_t Fiber::* counter, unsigned begin, unsigned end) {
  const uint64_t mine = ++(fibers[current].*counter);
  const auto behind = [&] {
    for (unsigned t = begin; t < end; ++t)
      if (!fibers[t].done && fibers[t].*counter < mine) return true;
    return false;
  };
  while (behind()) yield();
}

inline void run_block(const std::function<void()>& work, unsigned threads) {
  if (fibers.size() < threads) fibers.resize(threads);
  slots.assign(threads, 0);
  live = threads;
  body = &work;
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = fibers[t];
    fiber.done = false;
    fiber.barriers = fiber.exchanges = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  const bool backwards = blocks++ % 2;  // so that a missing barrier shows in either direction
  for (bool running = true; running;) {
    running = false;
    for (unsigned i = 0; i < threads; ++i) {
      const unsigned t = backwards ? threads - 1 - i : i;
      if (fibers[t].done) continue;
      running = true;
      current = t;
      threadIdx = dim3(t);
      swapcontext(&scheduler, &fibers[t].context);
    }
  }
}

// Combines what the 32 lanes of this warp show: join(result, lane, value).
template <class Result, class Join>
Result exchange(uint64_t value, Result result, const Join& join) {
  const unsigned first = current / kWarp * kWarp, end = first + kWarp;
  slots[current] = value;
  meet(&Fiber::exchanges, first, end);
  for (unsigned t = first; t < end; ++t) join(result, t - first, slots[t]);
  meet(&Fiber::exchanges, first, end);
  return result;
}

}  // namespace emulation

inline void __syncthreads() {
  emulation::meet(&emulation::Fiber::barriers, 0, emulation::live);
}
inline void __trap() {
  emulation::trapped = emulation::fibers[emulation::current].done = true;
  emulation::yield();
}
inline unsigned __ballot_sync(unsigned, bool flag) {
  return emulation::exchange(flag, 0u, [](unsigned& votes, unsigned lane, uint64_t value) {
    votes |= static_cast<unsigned>(value) << lane;
  });
}
inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  return emulation::exchange(value, 0u, [](unsigned& largest, unsigned, uint64_t other) {
    largest = other > largest ? static_cast<unsigned>(other) : largest;
  });
}

template <class T>
T atomicMax(T* to, T value) {
  const T before = *to;
  *to = value > before ? value : before;
  return before;
}
template <class T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to = before + value;
  return before;
}

inline uint32_t __float_as_uint(float value) { return std::bit_cast<uint32_t>(value); }
inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline int __float2int_rn(float value) { return static_cast<int>(std::nearbyintf(value)); }
inline float __int2float_rn(int value) { return static_cast<float>(value); }
inline int __clz(int value) { return std::countl_zero(static_cast<unsigned>(value)); }
inline int __popc(unsigned value) { return std::popcount(value); }

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorLaunchFailure = 719,
};
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice = 3 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
using cudaStream_t = void*;
struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaErrorInvalidDevice          ? "no such device"
         : status == cudaErrorInvalidConfiguration ? "invalid configuration argument"
                                                   : "unspecified launch failure";
}
inline const char* cudaGetErrorName(cudaError_t status) {
  return status == cudaErrorInvalidDevice          ? "cudaErrorInvalidDevice"
         : status == cudaErrorInvalidConfiguration ? "cudaErrorInvalidConfiguration"
                                                   : "cudaErrorLaunchFailure";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  *properties = {"emulated", 8, 0, 4};
  return cudaSetDevice(device);
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = 4, cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from,
                                     std::size_t from_pitch, std::size_t width, std::size_t height,
                                     cudaMemcpyKind, cudaStream_t) {
  for (std::size_t i = 0; i < height; ++i)
    std::memcpy(static_cast<char*>(to) + i * to_pitch,
                static_cast<const char*>(from) + i * from_pitch, width);
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
  const std::function<void()> work = [&] { std::apply(kernel, values); };
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  constexpr unsigned kMostAcross = 0x7fffffffu, kMostDown = 65535, kMostThreads = 1024;
  if (gridDim.x - 1 >= kMostAcross || gridDim.y - 1 >= kMostDown || blockDim.x - 1 >= kMostThreads)
    return cudaErrorInvalidConfiguration;
  emulation::trapped = false;
  for (unsigned y = 0; y < gridDim.y; ++y)
    for (unsigned x = 0; x < gridDim.x; ++x) {
      blockIdx = dim3(x, y);
      emulation::run_block(work, blockDim.x);
    }
  return emulation::trapped ? cudaErrorLaunchFailure : cudaSuccess;
}
