// int8tile._core: the core's functions over plain addresses, shapes and strides. Python allocates
// every result; nothing here knows of torch. Checks of shapes and dtypes live in int8tile.ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "arguments.hpp"
#include "int8tile/check.hpp"
#include "int8tile/gemm.hpp"
#include "int8tile/linear.hpp"
#include "int8tile/outliers.hpp"
#include "int8tile/probe.hpp"

namespace py = pybind11;
using namespace int8tile;
using namespace int8tile::bindings;

namespace {

// The number of outlier columns that an op found earlier. The core reads and writes by these
// columns, so they are checked as well: index // [capacity] ascending and inside [0, features).
int64_t read_found(const char* who, Address count, Address index, int64_t capacity,
                   int64_t features) {
  const int64_t found = *pointer<const int32_t>(count);
  require(found >= 0 && found <= capacity, who, ": outlier_count must hold 0..", capacity,
          " columns; got ", found);
  const int32_t* column = pointer<const int32_t>(index);
  for (int64_t t = 0; t < found; ++t)
    require(column[t] > (t == 0 ? -1 : column[t - 1]) && column[t] < features, who,
            ": outlier_index must hold ", found, " ascending columns below ", features, "; got ",
            column[t], " at ", t);
  return found;
}

// found, overflow // [2] int32
void store(const OutlierCounts& counts, Address address) {
  pointer<int32_t>(address)[0] = counts.found;
  pointer<int32_t>(address)[1] = counts.overflow;
}

void forward(const Matrix& input, const Matrix& weight, const Matrix& bias, Address packed,
             Address packed_scale, float threshold, int outlier_bits, int64_t capacity,
             const std::string& granularity, const std::string& scale, Address saved_regular,
             Address saved_high, Address input_scale, Address index, Address count,
             const Matrix& out, int threads, const std::string& isa, bool outlier_gain,
             Address weight_absmax) {
  ForwardArgs args;
  args.input = view(input);
  args.weight = view(weight);
  args.bias = view(bias);
  args.packed = {pointer<const uint8_t>(packed), pointer<const float>(packed_scale),
                 pointer<const uint32_t>(weight_absmax)};
  args.outlier_gain = outlier_gain;
  args.split = {threshold, outlier_bits, capacity};
  args.spec = spec_of(granularity, scale);
  args.saved = {pointer<uint8_t>(saved_regular), pointer<uint8_t>(saved_high)};
  args.input_scale = pointer<float>(input_scale);
  args.index = pointer<int32_t>(index);
  if (outlier_gain && index) args.gain = args.index + capacity;
  args.out = output(out);
  const CpuFacts cpu = cpu_facts(threads, isa);
  const py::gil_scoped_release release;
  const OutlierCounts counts = linear_forward(args, cpu);
  if (count) store(counts, count);
}

void quantize_input_into(const Matrix& input, float threshold, int outlier_bits, int64_t capacity,
                         const std::string& granularity, const std::string& scale,
                         Address saved_regular, Address saved_high, Address block,
                         Address input_scale, Address index, Address count, int threads,
                         const std::string& isa) {
  QuantizeInputArgs args;
  args.input = view(input);
  args.split = {threshold, outlier_bits, capacity};
  args.spec = spec_of(granularity, scale);
  args.saved = {pointer<uint8_t>(saved_regular), pointer<uint8_t>(saved_high)};
  args.to = {pointer<void>(block), pointer<float>(input_scale), pointer<int32_t>(index)};
  const CpuFacts cpu = cpu_facts(threads, isa);
  const py::gil_scoped_release release;
  store(quantize_input(args, cpu), count);
}

void multiply(Address block, Address input_scale, Address index, Address count, int64_t capacity,
              const Matrix& weight, const Matrix& bias, Address packed, Address packed_scale,
              const std::string& granularity, const std::string& scale, const Matrix& out,
              int threads, const std::string& isa) {
  MultiplyArgs args;
  args.rows = std::get<2>(out);
  args.input = {pointer<void>(block), pointer<float>(input_scale), pointer<int32_t>(index)};
  args.capacity = capacity;
  args.weight = view(weight);
  args.outliers = read_found("int8tile::linear_multiply", count, index, capacity, args.weight.cols);
  args.packed = {pointer<const uint8_t>(packed), pointer<const float>(packed_scale)};
  args.spec = spec_of(granularity, scale);
  args.bias = view(bias);
  args.out = output(out);
  const CpuFacts cpu = cpu_facts(threads, isa);
  const py::gil_scoped_release release;
  linear_multiply(args, cpu);
}

GradInputArgs grad_input_args(const Matrix& grad_output, const Matrix& weight, Address packed,
                              Address packed_scale, const QuantizeSpec& spec, const Matrix& out) {
  GradInputArgs args;
  args.grad_output = view(grad_output);
  args.weight = view(weight);
  args.in_features = args.weight.cols;
  args.packed = {pointer<const uint8_t>(packed), pointer<const float>(packed_scale)};
  args.spec = spec;
  args.spec.gemm_id = 1;
  args.out = output(out);
  return args;
}

// What linear_forward saved of x: regular and high panels, scale, index, count, the capacity and
// whether exponents of gains follow the index, [2, capacity].
using Saved = std::tuple<Address, Address, Address, Address, Address, int64_t, bool>;

const int32_t* read_gains(const char* who, const int32_t* gain, int64_t found) {
  for (int64_t t = 0; t < found; ++t)
    require(gain[t] >= 0 && gain[t] <= kMaxGainExponent, who,
            ": outlier_index must hold exponents of gains in 0..", kMaxGainExponent, "; got ",
            gain[t], " at ", t);
  return gain;
}

GradWeightArgs grad_weight_args(const char* who, const Matrix& grad_output, const Saved& saved,
                                const QuantizeSpec& spec, const Matrix& out, Address grad_bias,
                                bool split_tokens) {
  const auto [regular, high, input_scale, index, count, capacity, gains] = saved;
  GradWeightArgs args;
  args.grad_output = view(grad_output);
  args.saved_regular = pointer<const uint8_t>(regular);
  args.saved_high = pointer<const uint8_t>(high);
  args.input_scale = pointer<const float>(input_scale);
  args.index = pointer<const int32_t>(index);
  args.in_features = std::get<3>(out);
  args.outliers = read_found(who, count, index, capacity, args.in_features);
  if (gains) args.gain = read_gains(who, args.index + capacity, args.outliers);
  args.spec = spec;
  // With one scale for the tensor both backward GEMMs share one q(g), so one stream of bits.
  args.spec.gemm_id = spec.granularity == Granularity::kTensor ? 1 : 2;
  args.out = output(out);
  args.grad_bias = pointer<float>(grad_bias);
  args.split_tokens = split_tokens;
  return args;
}

void grad_input(const Matrix& grad_output, const Matrix& weight, Address packed,
                Address packed_scale, const std::string& granularity, const std::string& scale,
                const std::string& rounding, int64_t seed, const Matrix& out, int threads,
                const std::string& isa) {
  const QuantizeSpec spec = spec_of(granularity, scale, rounding, seed);
  const auto args = grad_input_args(grad_output, weight, packed, packed_scale, spec, out);
  const CpuFacts cpu = cpu_facts(threads, isa);
  const py::gil_scoped_release release;
  linear_grad_input(args, cpu);
}

void grad_weight(const Matrix& grad_output, const Saved& saved, const std::string& granularity,
                 const std::string& scale, const std::string& rounding, int64_t seed,
                 const Matrix& out, Address grad_bias, int threads, const std::string& isa,
                 bool split_tokens) {
  const QuantizeSpec spec = spec_of(granularity, scale, rounding, seed);
  const auto args = grad_weight_args("int8tile::linear_grad_weight", grad_output, saved, spec, out,
                                     grad_bias, split_tokens);
  const CpuFacts cpu = cpu_facts(threads, isa);
  const py::gil_scoped_release release;
  linear_grad_weight(args, cpu);
}

void backward(const Matrix& grad_output, const Matrix& weight, const Saved& saved,
              const std::string& granularity, const std::string& scale, const std::string& rounding,
              int64_t seed, const Matrix& grad_input, const Matrix& grad_weight, Address grad_bias,
              int threads, const std::string& isa, bool split_tokens) {
  const QuantizeSpec spec = spec_of(granularity, scale, rounding, seed);
  const auto input = grad_input_args(grad_output, weight, 0, 0, spec, grad_input);
  const auto by_weight = grad_weight_args("int8tile::linear_backward", grad_output, saved, spec,
                                          grad_weight, grad_bias, split_tokens);
  const CpuFacts cpu = cpu_facts(threads, isa);
  const py::gil_scoped_release release;
  linear_backward(input, by_weight, cpu);
}

void pack(const Matrix& weight, const std::string& granularity, const std::string& scale,
          bool transposed, Address panels, Address scales, int threads, const std::string& isa) {
  const QuantizeSpec spec = spec_of(granularity, scale);
  const CpuFacts cpu = cpu_facts(threads, isa);
  const py::gil_scoped_release release;
  pack_weight(view(weight), spec, transposed, cpu, pointer<uint8_t>(panels),
              pointer<float>(scales));
}

void quantize(const Matrix& input, Address fold, const std::string& granularity,
              const std::string& scale, const std::string& rounding, int64_t seed, uint32_t gemm_id,
              bool transposed, Address q, Address scales, int threads, const std::string& isa) {
  const QuantizeSpec spec = spec_of(granularity, scale, rounding, seed, gemm_id);
  const CpuFacts cpu = cpu_facts(threads, isa);
  const py::gil_scoped_release release;
  QuantizeTargets targets;
  (transposed ? targets.transposed : targets.row_major) = pointer<int8_t>(q);
  if (transposed)
    quantize_columns(view(input), pointer<const float>(fold), spec, cpu, targets,
                     pointer<float>(scales));
  else
    quantize_rows(view(input), pointer<const float>(fold), spec, cpu, targets, nullptr,
                  pointer<float>(scales));
}

void quantize_split(const Matrix& input, float threshold, int outlier_bits, int64_t capacity,
                    const std::string& granularity, const std::string& scale, Address q,
                    Address high, Address low, Address scales, Address index, Address count,
                    int threads, const std::string& isa) {
  const QuantizeSpec spec = spec_of(granularity, scale);
  const CpuFacts cpu = cpu_facts(threads, isa);
  const py::gil_scoped_release release;
  const MatrixView x = view(input);
  std::vector<uint32_t> mask(static_cast<std::size_t>(x.cols));
  const OutlierCounts counts = detect_outliers(x, {threshold, outlier_bits, capacity}, cpu,
                                               pointer<int32_t>(index), mask.data());
  QuantizeTargets targets;
  targets.row_major = pointer<int8_t>(q);
  OutlierTargets outliers;
  outliers.index = pointer<const int32_t>(index);
  outliers.mask = mask.data();
  outliers.count = counts.found;
  outliers.outlier_bits = outlier_bits;
  outliers.high = pointer<int8_t>(high);
  outliers.low = pointer<int8_t>(low);
  outliers.capacity = capacity;
  quantize_rows(x, nullptr, spec, cpu, targets, &outliers, pointer<float>(scales));
  store(counts, count);
}

void gemm_int8(Address a, int64_t m, int64_t k, Address b, int64_t n, Address a_high,
               Address b_high, int64_t high_columns, Address out, int threads,
               const std::string& isa) {
  const CpuFacts cpu = cpu_facts(threads, isa);
  const py::gil_scoped_release release;
  multiply_int8({m, n, k, pointer<const int8_t>(a), pointer<const int8_t>(b), high_columns,
                 pointer<const int8_t>(a_high), pointer<const int8_t>(b_high)},
                cpu, pointer<int32_t>(out));
}

// FNV-1a over the first, last and evenly spaced 8-byte words of a buffer.
uint64_t fingerprint(Address address, int64_t bytes, int64_t samples) {
  const char* data = pointer<const char>(address);
  uint64_t hash = 14695981039346656037ull;
  const int64_t words = bytes / 8;
  const int64_t count = std::min(words, samples);
  for (int64_t i = 0; i < count; ++i) {
    uint64_t word;
    const int64_t at = count == 1 ? 0 : static_cast<int64_t>(i * (words - 1) / (count - 1));
    std::memcpy(&word, data + at * 8, sizeof word);
    hash = (hash ^ word) * 1099511628211ull;
  }
  return hash;
}

std::vector<std::pair<int64_t, int64_t>> slices_of(const GemmPlan& plan) {
  std::vector<std::pair<int64_t, int64_t>> out;
  for (const Slice& slice : plan.slices) out.emplace_back(slice.begin, slice.end);
  return out;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "int8tile's C++ core over plain addresses; see int8tile.ops for the torch ops.";
  m.attr("__version__") = INT8TILE_VERSION;
  m.attr("SLICE_DEPTH") = kSliceDepth;
  py::register_exception<UnsupportedError>(m, "UnsupportedError", PyExc_NotImplementedError);

  py::class_<GemmPlan>(m, "GemmPlan", "How one segmented GEMM will run; str() prints it.")
      .def_readonly("m", &GemmPlan::m)
      .def_readonly("n", &GemmPlan::n)
      .def_readonly("k", &GemmPlan::k)
      .def_readonly("capacity", &GemmPlan::capacity)
      .def_readonly("outlier_bits", &GemmPlan::outlier_bits)
      .def_readonly("k_padded", &GemmPlan::k_padded)
      .def_readonly("m_block", &GemmPlan::m_block)
      .def_readonly("n_block", &GemmPlan::n_block)
      .def_readonly("k_block", &GemmPlan::k_block)
      .def_readonly("tasks", &GemmPlan::tasks)
      .def_readonly("threads", &GemmPlan::threads)
      .def_readonly("stream", &GemmPlan::stream)
      .def_readonly("accumulator_bound", &GemmPlan::accumulator_bound)
      .def_readonly("workspace_bytes", &GemmPlan::workspace_bytes)
      .def_property_readonly("slices", &slices_of)
      .def_property_readonly("isa", [](const GemmPlan& p) { return kernel_name(*p.cpu.kernel); })
      .def_property_readonly("tile",
                             [](const GemmPlan& p) {
                               return std::make_pair(tile_shape(*p.cpu.kernel).rows,
                                                     tile_shape(*p.cpu.kernel).columns);
                             })
      .def_property_readonly("verdict", &GemmPlan::verdict)
      .def("why_float", &GemmPlan::why_float, py::arg("frozen"))
      .def("text", &GemmPlan::text, py::arg("with_verdict") = true)
      .def("__str__", [](const GemmPlan& p) { return p.text(); });

  m.def("compiled_isas", &compiled_isas, "Kernels in this build, best first.");
  m.def("supported_isas", &supported_isas, "Kernels this CPU can run, best first.");
  m.def("default_isa", [] { return kernel_name(select_kernel()); });
  m.def(
      "kernel_verdict", [](const std::string& isa) { return kernel_verdict(select_kernel(isa)); },
      py::arg("isa") = "");
  m.def("cache_bytes", [] {
    const CpuFacts cpu = cpu_facts(1);
    return std::make_pair(cpu.l1_bytes, cpu.l2_bytes);
  });
  m.def(
      "panel_columns",
      [](const std::string& isa) { return tile_shape(select_kernel(isa)).columns; },
      py::arg("isa") = "");
  m.def("default_capacity", &default_capacity, py::arg("k"));
  m.def(
      "plan",
      [](int64_t rows, int64_t n, int64_t k, int64_t capacity, int outlier_bits, int threads,
         const std::string& isa) {
        return plan_linear(rows, n, k, capacity, outlier_bits, cpu_facts(threads, isa));
      },
      py::arg("m"), py::arg("n"), py::arg("k"), py::arg("capacity"), py::arg("outlier_bits"),
      py::arg("threads"), py::arg("isa") = "");

  m.def("linear_forward", &forward, py::arg("input"), py::arg("weight"), py::arg("bias"),
        py::arg("packed"), py::arg("packed_scale"), py::arg("threshold"), py::arg("outlier_bits"),
        py::arg("capacity"), py::arg("granularity"), py::arg("scale"), py::arg("saved_regular"),
        py::arg("saved_high"), py::arg("input_scale"), py::arg("index"), py::arg("count"),
        py::arg("out"), py::arg("threads"), py::arg("isa") = "", py::arg("outlier_gain") = false,
        py::arg("weight_absmax") = 0);
  m.def(
      "quantized_input_bytes",
      [](int64_t rows, int64_t k, int64_t capacity) {
        return quantized_input_bytes(rows, k, capacity, cpu_facts(1));
      },
      py::arg("m"), py::arg("k"), py::arg("capacity"));
  m.def("quantize_input", &quantize_input_into, py::arg("input"), py::arg("threshold"),
        py::arg("outlier_bits"), py::arg("capacity"), py::arg("granularity"), py::arg("scale"),
        py::arg("saved_regular"), py::arg("saved_high"), py::arg("block"), py::arg("input_scale"),
        py::arg("index"), py::arg("count"), py::arg("threads"), py::arg("isa") = "");
  m.def("linear_multiply", &multiply, py::arg("block"), py::arg("input_scale"), py::arg("index"),
        py::arg("count"), py::arg("capacity"), py::arg("weight"), py::arg("bias"),
        py::arg("packed"), py::arg("packed_scale"), py::arg("granularity"), py::arg("scale"),
        py::arg("out"), py::arg("threads"), py::arg("isa") = "");
  m.def("linear_grad_input", &grad_input, py::arg("grad_output"), py::arg("weight"),
        py::arg("packed"), py::arg("packed_scale"), py::arg("granularity"), py::arg("scale"),
        py::arg("rounding"), py::arg("seed"), py::arg("out"), py::arg("threads"),
        py::arg("isa") = "");
  m.def("linear_grad_weight", &grad_weight, py::arg("grad_output"), py::arg("saved"),
        py::arg("granularity"), py::arg("scale"), py::arg("rounding"), py::arg("seed"),
        py::arg("out"), py::arg("grad_bias"), py::arg("threads"), py::arg("isa") = "",
        py::arg("split_tokens") = false);
  m.def("linear_backward", &backward, py::arg("grad_output"), py::arg("weight"), py::arg("saved"),
        py::arg("granularity"), py::arg("scale"), py::arg("rounding"), py::arg("seed"),
        py::arg("grad_input"), py::arg("grad_weight"), py::arg("grad_bias"), py::arg("threads"),
        py::arg("isa") = "", py::arg("split_tokens") = false);
  m.def("pack_weight", &pack, py::arg("weight"), py::arg("granularity"), py::arg("scale"),
        py::arg("transposed"), py::arg("panels"), py::arg("scales"), py::arg("threads"),
        py::arg("isa") = "");
  m.def("quantize", &quantize, py::arg("input"), py::arg("fold"), py::arg("granularity"),
        py::arg("scale"), py::arg("rounding"), py::arg("seed"), py::arg("gemm_id"),
        py::arg("transposed"), py::arg("q"), py::arg("scales"), py::arg("threads"),
        py::arg("isa") = "");
  m.def("quantize_split", &quantize_split, py::arg("input"), py::arg("threshold"),
        py::arg("outlier_bits"), py::arg("capacity"), py::arg("granularity"), py::arg("scale"),
        py::arg("q"), py::arg("high"), py::arg("low"), py::arg("scales"), py::arg("index"),
        py::arg("count"), py::arg("threads"), py::arg("isa") = "");
  m.def("gemm", &gemm_int8, py::arg("a"), py::arg("m"), py::arg("k"), py::arg("b"), py::arg("n"),
        py::arg("a_high"), py::arg("b_high"), py::arg("high_columns"), py::arg("out"),
        py::arg("threads"), py::arg("isa") = "");
  py::class_<PackedGemm>(m, "GemmBench", "One GEMM on ready operands, for benchmarks.")
      .def(py::init([](int64_t rows, int64_t n, int64_t k, int64_t outliers, int threads,
                       const std::string& isa) {
             return PackedGemm(rows, n, k, outliers, cpu_facts(threads, isa));
           }),
           py::arg("m"), py::arg("n"), py::arg("k"), py::arg("outliers"), py::arg("threads"),
           py::arg("isa") = "")
      .def("run", &PackedGemm::run, py::call_guard<py::gil_scoped_release>());
  m.def(
      "peak_gops",
      [](int threads, const std::string& isa, double seconds) {
        return peak_gops(cpu_facts(threads, isa), seconds);
      },
      py::arg("threads"), py::arg("isa") = "", py::arg("seconds") = 0.01);
  m.def(
      "tile_gops",
      [](int64_t k, int threads, const std::string& isa, double seconds) {
        return tile_gops(cpu_facts(threads, isa), k, seconds);
      },
      py::arg("k"), py::arg("threads"), py::arg("isa") = "", py::arg("seconds") = 0.01);
  bind_cuda(m);
  m.def("fingerprint", &fingerprint, py::arg("address"), py::arg("bytes"), py::arg("samples"));
}
