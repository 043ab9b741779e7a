// Cases of int8tile_bench on a GPU, in bfloat16; without one a line on standard error says why.
#include <iostream>

#include "device.hpp"
#include "int8tile/check.hpp"
#include "int8tile/cuda.hpp"

namespace int8tile::bench {
namespace {

constexpr int64_t kOutliers[] = {0, 16, 64};

int64_t padded(int64_t size) { return ceil_div(size, cuda::kDepthAlign) * cuda::kDepthAlign; }

/// [rows, cols] in bfloat16 with `outliers` large columns.
class Matrix {
 public:
  Matrix(int64_t rows, int64_t cols, float deviation, int64_t outliers)
      : values_(rows * cols), rows_(rows), cols_(cols) {
    const int64_t drawn = std::min(rows, ceil_div(kDrawn, cols));
    std::vector<float> values = normal(drawn * cols, deviation, 0);
    for (int64_t i = 0; i < drawn; ++i)
      for (int64_t j = 0; j < outliers; ++j)
        values[static_cast<std::size_t>(i * cols + j * (cols / outliers))] *= 30.0f;
    values_.repeat(to_bfloat16(values));
  }
  MatrixView view() const { return {values_.get(), DType::kBFloat16, rows_, cols_, cols_, 1}; }

 private:
  DeviceArray<uint16_t> values_;
  int64_t rows_, cols_;
};

/// x with room for its int8 values, as linear_multiply and backward read them.
struct Input {
  Input(int64_t m, int64_t k, int64_t outliers)
      : x(m, k, 1.0f, outliers),
        split{5.0f, 12, outliers},
        values(m * padded(k)),
        high(m * padded(outliers)),
        saved(k * padded(m)),
        saved_high(outliers * padded(m)),
        scale(m),
        index(outliers),
        count(2),
        workspace(cuda::quantize_workspace(m, k)) {}

  cuda::QuantizedInput quantized() const {
    return {.values = values.get(),
            .high = high.get(),
            .saved_values = saved.get(),
            .saved_high = split.capacity ? saved_high.get() : nullptr,
            .scale = scale.get(),
            .index = index.get(),
            .count = count.get()};
  }
  void quantize(const cuda::Stream& stream) const {
    cuda::quantize_input(x.view(), split, {}, {}, quantized(), workspace.get(), stream);
  }

  Matrix x;
  SplitSpec split;
  DeviceArray<int8_t> values, high, saved, saved_high;
  DeviceArray<float> scale;
  DeviceArray<int32_t> index, count;
  DeviceArray<uint8_t> workspace;
};

void run_quantize(benchmark::State& state, int64_t m, Layer layer, int64_t outliers) {
  Replay replay;
  const Input input(m, layer.k, outliers);
  replay.time(state, [&] { input.quantize({replay.stream(), 0}); });
  state.SetBytesProcessed(state.iterations() * m * layer.k * int64_t{4});  // 2 in, 2 out
}

void run_gemm(benchmark::State& state, int64_t m, Layer layer, int64_t outliers) {
  Replay replay;
  DeviceArray<int8_t> a(m * layer.k), b(layer.n * layer.k);
  const int64_t columns = padded(outliers);
  DeviceArray<int8_t> a_high(m * columns), b_high(layer.n * columns);
  for (DeviceArray<int8_t>* each : {&a, &b, &a_high, &b_high}) each->repeat(random_int8());
  DeviceArray<int32_t> out(m * layer.n), count(1);
  count.repeat({static_cast<int32_t>(outliers)});
  const cuda::Int8Product product{m,       layer.n,      layer.k,      a.get(),     b.get(),
                                  columns, a_high.get(), b_high.get(), count.get(), out.get()};
  replay.time(state, [&] { cuda::multiply_int8(product, {replay.stream(), 0}); });
  count_operations(state, m, layer);
}

void run_linear(benchmark::State& state, int64_t m, Layer layer, int64_t outliers, bool frozen) {
  Replay replay;
  const cuda::Stream stream{replay.stream(), 0};
  const Input input(m, layer.k, outliers);
  const Matrix weight(layer.n, layer.k, 0.05f, 0);
  const DeviceArray<int8_t> packed(layer.n * padded(layer.k));
  const DeviceArray<float> scale(layer.n);
  const DeviceArray<uint8_t> workspace(
      std::max(cuda::multiply_workspace(m, layer.n, layer.k, outliers, frozen),
               cuda::quantize_workspace(layer.n, layer.k)) +
      1);
  const DeviceArray<uint16_t> y(m * layer.n);
  cuda::MultiplyArgs args;
  args.m = m;
  args.input = input.quantized();
  args.capacity = outliers;
  args.weight = weight.view();
  args.out = {y.get(), DType::kBFloat16, layer.n};
  if (frozen) {
    cuda::quantize(weight.view(), nullptr, false, {}, packed.get(), scale.get(), workspace.get(),
                   stream);
    args.packed = {packed.get(), scale.get()};
  }
  replay.time(state, [&] {
    input.quantize(stream);
    cuda::linear_multiply(args, workspace.get(), stream);
  });
  count_operations(state, m, layer);
}

void add_all() {
  if (const std::string why = cuda::unavailable(); !why.empty()) {
    std::cerr << "int8tile_bench: no cases on a GPU: " << why << '\n';
    return;
  }
  const cuda::DeviceFacts device = cuda::device_facts(0);
  benchmark::AddCustomContext("gpu", device.name);
  for (const Layer& layer : kLayers)
    for (const int64_t m : kDeviceTokens)
      for (const int64_t outliers : kOutliers) {
        const std::string name = shape_name(layer, m) + "/outliers:" + std::to_string(outliers);
        add_on_device("cuda/quantize" + name, run_quantize, m, layer, outliers);
        add_on_device("cuda/gemm" + name, run_gemm, m, layer, outliers);
        add_on_device("cuda/linear" + name + "/weight:trained", run_linear, m, layer, outliers,
                      false);
        add_on_device("cuda/linear" + name + "/weight:frozen", run_linear, m, layer, outliers,
                      true);
      }
}

const CaseFile cases(add_all);

}  // namespace
}  // namespace int8tile::bench
