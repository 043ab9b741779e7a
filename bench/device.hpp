// Device memory and graph replays for the cases of int8tile_bench that run on a GPU.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cases.hpp"

namespace int8tile::bench {

inline constexpr int64_t kDeviceTokens[] = {16, 128, 1024, 8192};
inline constexpr int64_t kDrawn = 1 << 20;  // random values, then repeated

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t count) : count_(count) {
    check(cudaMalloc(&data_, std::max<std::size_t>(bytes(), 1)), "cudaMalloc");
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* get() const { return static_cast<T*>(data_); }
  std::size_t bytes() const { return static_cast<std::size_t>(count_) * sizeof(T); }

  /// Fills the array with `values` over and over.
  void repeat(const std::vector<T>& values) {
    const auto period = static_cast<int64_t>(values.size());
    for (int64_t at = 0; at < count_; at += period)
      check(cudaMemcpy(get() + at, values.data(),
                       static_cast<std::size_t>(std::min(period, count_ - at)) * sizeof(T),
                       cudaMemcpyHostToDevice),
            "cudaMemcpy");
  }

 private:
  void* data_ = nullptr;
  int64_t count_;
};

/// bfloat16 by its bits, cut off.
inline std::vector<uint16_t> to_bfloat16(const std::vector<float>& values) {
  std::vector<uint16_t> cut(values.size());
  std::transform(values.begin(), values.end(), cut.begin(), [](float value) {
    return static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
  });
  return cut;
}

inline std::vector<int8_t> random_int8() {
  std::mt19937 random(0);
  std::vector<int8_t> values(kDrawn);
  for (int8_t& value : values) value = static_cast<int8_t>(random() % 255) - 127;
  return values;
}

/// Captures work on a stream and times its replays, each after the L2 cache was overwritten.
class Replay {
 public:
  Replay() {
    check(cudaStreamCreate(&stream_), "cudaStreamCreate");
    check(cudaEventCreate(&begin_), "cudaEventCreate");
    check(cudaEventCreate(&end_), "cudaEventCreate");
  }
  ~Replay() {
    if (graph_) cudaGraphExecDestroy(graph_);
    cudaEventDestroy(end_);
    cudaEventDestroy(begin_);
    cudaStreamDestroy(stream_);
  }
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;

  cudaStream_t stream() const { return stream_; }

  template <class Work>
  void time(benchmark::State& state, Work work) {
    work();  // loads modules
    check(cudaStreamSynchronize(stream_), "first run");
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capture");
    work();
    check(cudaStreamEndCapture(stream_, &graph), "capture");
    check(cudaGraphInstantiate(&graph_, graph, 0), "cudaGraphInstantiate");
    cudaGraphDestroy(graph);
    int cache = 0;
    check(cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, 0), "device attribute");
    const DeviceArray<int8_t> flush(std::max<int64_t>(4 * int64_t{cache}, kFlushBytes));
    for (auto _ : state) state.SetIterationTime(sample(flush));
  }

 private:
  static constexpr int64_t kFlushBytes = 256 << 20;  // at least: launches queue up meanwhile

  double sample(const DeviceArray<int8_t>& flush) {
    check(cudaMemsetAsync(flush.get(), 0, flush.bytes(), stream_), "memset");
    check(cudaEventRecord(begin_, stream_), "event");
    check(cudaGraphLaunch(graph_, stream_), "graph");
    check(cudaEventRecord(end_, stream_), "event");
    check(cudaEventSynchronize(end_), "run");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin_, end_), "event");
    return milliseconds * 1e-3;
  }

  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  cudaGraphExec_t graph_ = nullptr;
};

/// Adds a case that is timed by events; what it throws becomes its result.
template <class Run, class... Args>
void add_on_device(const std::string& name, Run run, Args... args) {
  const auto guarded = [=](benchmark::State& state) {
    try {
      run(state, args...);
    } catch (const std::exception& error) {
      state.SkipWithError(error.what());
    }
  };
  benchmark::RegisterBenchmark(name.c_str(), guarded)
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

}  // namespace int8tile::bench
