// What the files of int8tile_bench's cases share: the layers, their names, random values.
#pragma once

#include <benchmark/benchmark.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace int8tile::bench {

struct Layer {
  const char* name;
  int64_t n, k;
};

inline constexpr Layer kLayers[] = {
    {"bert-base/attention", 768, 768},      {"bert-base/up", 3072, 768},
    {"bert-base/down", 768, 3072},          {"bert-large/attention", 1024, 1024},
    {"bert-large/up", 4096, 1024},          {"bert-large/down", 1024, 4096},
    {"llama-3.2-1b/attention", 2048, 2048}, {"llama-3.2-1b/up", 8192, 2048},
    {"llama-3.2-1b/down", 2048, 8192},      {"llama-3-8b/attention", 4096, 4096},
    {"llama-3-8b/up", 14336, 4096},         {"llama-3-8b/down", 4096, 14336},
};

/// Each file of cases defines one, and main calls them all.
class CaseFile {
 public:
  explicit CaseFile(void (*add)()) { all().push_back(add); }
  static std::vector<void (*)()>& all() {
    static std::vector<void (*)()> files;
    return files;
  }
};

inline std::string shape_name(const Layer& layer, int64_t m) {
  return std::string("/") + layer.name + "/tokens:" + std::to_string(m);
}

inline std::vector<float> normal(int64_t count, float deviation, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution(0.0f, deviation);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = distribution(random);
  return values;
}

/// GOP/s of one GEMM; the outlier segments are not counted.
inline void count_operations(benchmark::State& state, int64_t m, const Layer& layer) {
  state.counters["GOP/s"] =
      benchmark::Counter(2e-9 * static_cast<double>(m) * static_cast<double>(layer.n * layer.k),
                         benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace int8tile::bench
