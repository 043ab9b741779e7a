// Cases of int8tile_bench on the CPU: the core's stages over the shapes of real layers.
#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cases.hpp"
#include "int8tile/linear.hpp"
#include "int8tile/probe.hpp"

namespace int8tile::bench {
namespace {

constexpr int64_t kTokens[] = {1, 16, 128, 1024, 4096};
constexpr int64_t kOutliers[] = {0, 4, 32, 128};

CpuFacts facts() {
  return cpu_facts(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
}

MatrixView view(const std::vector<float>& values, int64_t rows, int64_t cols) {
  return {values.data(), DType::kFloat32, rows, cols, cols, 1};
}

void run_quantize(benchmark::State& state, int64_t m, int64_t k) {
  const CpuFacts cpu = facts();
  const auto x = normal(m * k, 1.0f, 0);
  std::vector<int8_t> q(x.size());
  std::vector<float> scale(static_cast<std::size_t>(m));
  QuantizeTargets targets;
  targets.row_major = q.data();
  for (auto _ : state)
    quantize_rows(view(x, m, k), nullptr, {}, cpu, targets, nullptr, scale.data());
  state.SetBytesProcessed(state.iterations() * m * k * int64_t{5});
}

void run_gemm(benchmark::State& state, int64_t m, Layer layer, int64_t outliers) {
  PackedGemm gemm(m, layer.n, layer.k, outliers, facts());
  for (auto _ : state) gemm.run();
  count_operations(state, m, layer);
}

void run_linear(benchmark::State& state, int64_t m, Layer layer, int64_t outliers, bool frozen) {
  const CpuFacts cpu = facts();
  auto x = normal(m * layer.k, 1.0f, 0);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < outliers; ++j)
      x[static_cast<std::size_t>(i * layer.k + j * (layer.k / outliers))] *= 30.0f;
  const auto w = normal(layer.n * layer.k, 0.05f, 1);
  std::vector<float> y(static_cast<std::size_t>(m * layer.n)), scale(static_cast<std::size_t>(m));
  std::vector<uint8_t> panels(
      static_cast<std::size_t>(packed_bytes(*cpu.kernel, layer.n, layer.k)));
  std::vector<float> weight_scale(static_cast<std::size_t>(layer.n));
  pack_weight(view(w, layer.n, layer.k), {}, false, cpu, panels.data(), weight_scale.data());
  std::vector<int32_t> index(static_cast<std::size_t>(outliers));
  ForwardArgs args;
  args.input = view(x, m, layer.k);
  args.weight = view(w, layer.n, layer.k);
  if (frozen) args.packed = {panels.data(), weight_scale.data()};
  args.split = {5.0f, 12, outliers};
  args.input_scale = scale.data();
  args.index = index.data();
  args.out = {y.data(), DType::kFloat32, layer.n};
  for (auto _ : state) linear_forward(args, cpu);
  count_operations(state, m, layer);
}

template <class... Args>
void add(const std::string& name, Args... args) {
  benchmark::RegisterBenchmark(name.c_str(), args...)->UseRealTime()->Unit(benchmark::kMicrosecond);
}

void add_all() {
  const CpuFacts cpu = facts();
  benchmark::AddCustomContext("int8tile_isa", kernel_name(*cpu.kernel));
  benchmark::AddCustomContext("int8tile_threads", std::to_string(cpu.threads));
  for (const Layer& layer : kLayers)
    for (const int64_t m : kTokens) {
      const std::string shape = shape_name(layer, m);
      add("quantize" + shape, run_quantize, m, layer.k);
      for (const int64_t outliers : kOutliers) {
        const std::string name = shape + "/outliers:" + std::to_string(outliers);
        add("gemm" + name, run_gemm, m, layer, outliers);
        add("linear" + name + "/weight:trained", run_linear, m, layer, outliers, false);
        add("linear" + name + "/weight:frozen", run_linear, m, layer, outliers, true);
      }
    }
}

const CaseFile cases(add_all);

}  // namespace
}  // namespace int8tile::bench
