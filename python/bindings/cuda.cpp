// The CUDA backend in int8tile._core: functions cuda_* over device addresses, a stream and a
// workspace, all of which Python allocates.
#include "int8tile/cuda.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "arguments.hpp"

namespace py = pybind11;

namespace int8tile::bindings {
namespace {

// (device index, cudaStream_t, address of the workspace)
using Call = std::tuple<int, Address, Address>;
// Addresses of the values, high limbs, low limbs (0: in place), saved values, saved high limbs,
// scales, index, count and gains (0: none), and the outlier capacity.
using Input = std::tuple<Address, Address, Address, Address, Address, Address, Address, Address,
                         Address, int64_t>;
using Options = std::tuple<std::string, std::string>;                        // granularity, scale
using Rounded = std::tuple<std::string, std::string, std::string, Address>;  // and rounding, seed
using Packed = std::tuple<Address, Address>;                                 // values, scale
using Gains = std::tuple<Matrix, Address, bool>;  // weight, absmax of its rows, whether it is known

cuda::Stream stream(const Call& call) {
  return {pointer<void>(std::get<1>(call)), std::get<0>(call)};
}

void* workspace(const Call& call) { return pointer<void>(std::get<2>(call)); }

cuda::QuantizedInput input_of(const Input& input) {
  const auto [values, high, low, saved_values, saved_high, scale, index, count, gain, capacity] =
      input;
  return {pointer<int8_t>(values),       pointer<int8_t>(high),       pointer<int8_t>(low),
          pointer<int8_t>(saved_values), pointer<int8_t>(saved_high), pointer<float>(scale),
          pointer<int32_t>(index),       pointer<int32_t>(count),     pointer<int32_t>(gain)};
}

int64_t capacity_of(const Input& input) { return std::get<9>(input); }

cuda::Quantization how_of(const Options& options) {
  const QuantizeSpec spec = spec_of(std::get<0>(options), std::get<1>(options));
  return {spec.granularity, spec.scale, Rounding::kNearest, nullptr, 0};
}

cuda::Quantization how_of(const Rounded& options, uint32_t gemm_id) {
  const auto& [granularity, scale, rounding, seed] = options;
  const QuantizeSpec spec = spec_of(granularity, scale, rounding);
  return {spec.granularity, spec.scale, spec.rounding, pointer<const int64_t>(seed), gemm_id};
}

cuda::Int8Matrix packed_of(const Packed& packed) {
  return {pointer<const int8_t>(std::get<0>(packed)), pointer<const float>(std::get<1>(packed))};
}

void quantize_input(const Call& call, const Matrix& x, float threshold, int outlier_bits,
                    const Options& options, const std::optional<Gains>& gains, const Input& to) {
  const SplitSpec split{threshold, outlier_bits, capacity_of(to)};
  const cuda::Quantization how = how_of(options);
  cuda::GainWeight weight;
  if (gains)
    weight = {view(std::get<0>(*gains)), pointer<uint32_t>(std::get<1>(*gains)),
              std::get<2>(*gains)};
  const py::gil_scoped_release release;
  cuda::quantize_input(view(x), split, how, weight, input_of(to), workspace(call), stream(call));
}

void quantize(const Call& call, const Matrix& x, Address fold, bool transposed,
              const Rounded& options, uint32_t gemm_id, Address q, Address scale) {
  const cuda::Quantization how = how_of(options, gemm_id);
  const py::gil_scoped_release release;
  cuda::quantize(view(x), pointer<const float>(fold), transposed, how, pointer<int8_t>(q),
                 pointer<float>(scale), workspace(call), stream(call));
}

void refresh_weight(const Call& call, const Matrix& weight, bool transposed, const Options& options,
                    Address q, Address scale, Address mark) {
  const cuda::Quantization how = how_of(options);
  const py::gil_scoped_release release;
  cuda::refresh_weight(view(weight), transposed, how, pointer<int8_t>(q), pointer<float>(scale),
                       pointer<uint32_t>(mark), workspace(call), stream(call));
}

void multiply(const Call& call, int64_t m, const Input& input, const Matrix& weight,
              const Packed& packed, Address weight_absmax, const Options& options, Address bias,
              const Matrix& out) {
  const cuda::MultiplyArgs args{m,
                                input_of(input),
                                capacity_of(input),
                                view(weight),
                                packed_of(packed),
                                pointer<uint32_t>(weight_absmax),
                                how_of(options),
                                pointer<const float>(bias),
                                output(out)};
  const py::gil_scoped_release release;
  cuda::linear_multiply(args, workspace(call), stream(call));
}

cuda::GradInputArgs grad_input_args(const Matrix& grad_output, const Matrix& weight,
                                    const Packed& packed, const Rounded& options,
                                    const Matrix& out) {
  return {view(grad_output), view(weight), packed_of(packed), how_of(options, cuda::kGradInputId),
          output(out)};
}

cuda::GradWeightArgs grad_weight_args(const Matrix& grad_output, const Input& input,
                                      const Rounded& options, const Matrix& out, Address grad_bias,
                                      bool grad_split) {
  // With one scale for the tensor both gradients share one q(g), so one stream of bits.
  const bool tensor = std::get<0>(options) == "tensor";
  return {view(grad_output),
          input_of(input),
          std::get<3>(out),
          capacity_of(input),
          how_of(options, tensor ? cuda::kGradInputId : cuda::kGradWeightId),
          output(out),
          pointer<float>(grad_bias),
          grad_split};
}

void grad_input(const Call& call, const Matrix& grad_output, const Matrix& weight,
                const Packed& packed, const Rounded& options, const Matrix& out) {
  const cuda::GradInputArgs args = grad_input_args(grad_output, weight, packed, options, out);
  const py::gil_scoped_release release;
  cuda::linear_grad_input(args, workspace(call), stream(call));
}

void grad_weight(const Call& call, const Matrix& grad_output, const Input& input,
                 const Rounded& options, const Matrix& out, Address grad_bias, bool grad_split) {
  const cuda::GradWeightArgs args =
      grad_weight_args(grad_output, input, options, out, grad_bias, grad_split);
  const py::gil_scoped_release release;
  cuda::linear_grad_weight(args, workspace(call), stream(call));
}

void backward(const Call& call, const Matrix& grad_output, const Matrix& weight, const Input& input,
              const Rounded& options, const Matrix& grad_input, const Matrix& grad_weight,
              Address grad_bias, bool grad_split) {
  const cuda::GradInputArgs input_args =
      grad_input_args(grad_output, weight, {}, options, grad_input);
  const cuda::GradWeightArgs weight_args =
      grad_weight_args(grad_output, input, options, grad_weight, grad_bias, grad_split);
  const py::gil_scoped_release release;
  cuda::linear_backward(input_args, weight_args, workspace(call), stream(call));
}

void gemm(const Call& call, Address a, int64_t m, int64_t k, Address b, int64_t n, Address a_high,
          Address b_high, int64_t high_columns, Address high_count, Address out) {
  const cuda::Int8Product product{m,
                                  n,
                                  k,
                                  pointer<const int8_t>(a),
                                  pointer<const int8_t>(b),
                                  high_columns,
                                  pointer<const int8_t>(a_high),
                                  pointer<const int8_t>(b_high),
                                  pointer<const int32_t>(high_count),
                                  pointer<int32_t>(out)};
  const py::gil_scoped_release release;
  cuda::multiply_int8(product, stream(call));
}

std::tuple<std::string, int, int, int> device(int index) {
  const cuda::DeviceFacts facts = cuda::device_facts(index);
  return {facts.name, facts.major, facts.minor, facts.multiprocessors};
}

void bind_workspaces(py::module_& m) {
  m.def("cuda_quantize_workspace", &cuda::quantize_workspace, py::arg("rows"), py::arg("cols"));
  m.def("cuda_multiply_workspace", &cuda::multiply_workspace, py::arg("m"), py::arg("n"),
        py::arg("k"), py::arg("capacity"), py::arg("packed"));
  m.def("cuda_grad_input_workspace", &cuda::grad_input_workspace, py::arg("m"), py::arg("n"),
        py::arg("k"), py::arg("packed"));
  m.def("cuda_grad_weight_workspace", &cuda::grad_weight_workspace, py::arg("m"), py::arg("n"),
        py::arg("k"), py::arg("capacity"), py::arg("grad_split"));
  m.def("cuda_backward_workspace", &cuda::backward_workspace, py::arg("m"), py::arg("n"),
        py::arg("k"), py::arg("capacity"), py::arg("grad_split"));
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.attr("cuda_compiled") = true;
  m.def("cuda_device_count", &cuda::device_count, "CUDA devices; 0 without a driver.");
  m.def("cuda_unavailable", &cuda::unavailable, "Why there is no device; empty where there is.");
  m.def("cuda_device", &device, py::arg("index"),
        "Name, compute capability (major, minor) and number of multiprocessors.");
  bind_workspaces(m);
  m.def("cuda_quantize_input", &quantize_input, py::arg("call"), py::arg("input"),
        py::arg("threshold"), py::arg("outlier_bits"), py::arg("options"), py::arg("gains"),
        py::arg("to"));
  m.def("cuda_quantize", &quantize, py::arg("call"), py::arg("input"), py::arg("fold"),
        py::arg("transposed"), py::arg("options"), py::arg("gemm_id"), py::arg("q"),
        py::arg("scale"));
  m.def("cuda_refresh_weight", &refresh_weight, py::arg("call"), py::arg("weight"),
        py::arg("transposed"), py::arg("options"), py::arg("q"), py::arg("scale"), py::arg("mark"));
  m.def("cuda_linear_multiply", &multiply, py::arg("call"), py::arg("m"), py::arg("input"),
        py::arg("weight"), py::arg("packed"), py::arg("weight_absmax"), py::arg("options"),
        py::arg("bias"), py::arg("out"));
  m.def("cuda_linear_grad_input", &grad_input, py::arg("call"), py::arg("grad_output"),
        py::arg("weight"), py::arg("packed"), py::arg("options"), py::arg("out"));
  m.def("cuda_linear_grad_weight", &grad_weight, py::arg("call"), py::arg("grad_output"),
        py::arg("input"), py::arg("options"), py::arg("out"), py::arg("grad_bias"),
        py::arg("grad_split"));
  m.def("cuda_linear_backward", &backward, py::arg("call"), py::arg("grad_output"),
        py::arg("weight"), py::arg("input"), py::arg("options"), py::arg("grad_input"),
        py::arg("grad_weight"), py::arg("grad_bias"), py::arg("grad_split"));
  m.def("cuda_gemm", &gemm, py::arg("call"), py::arg("a"), py::arg("m"), py::arg("k"), py::arg("b"),
        py::arg("n"), py::arg("a_high"), py::arg("b_high"), py::arg("high_columns"),
        py::arg("high_count"), py::arg("out"));
}

}  // namespace int8tile::bindings
