// The forward pass of a linear layer as one way to feed the GEMM; gradients: linear_backward.cu.
#include "launch.cuh"
#include "linear.cuh"
#include "outliers.cuh"

namespace int8tile::cuda {
namespace {

/// out = sum + bias; either may be null.
template <class Out>
__global__ void finish_kernel(const float* sum, const float* bias, int64_t rows, int64_t cols,
                              Out* out, int64_t stride) {
  const int64_t at = linear_index();
  if (at >= rows * cols) return;
  const int64_t i = at / cols, j = at % cols;
  float value = sum ? sum[at] : 0.0f;
  if (bias) value = sum ? __fadd_rn(value, bias[j]) : bias[j];
  store_float(value, out + i * stride + j);
}

void finish_rows(const float* sum, const float* bias, const OutputView& out, int64_t rows,
                 int64_t cols, const Stream& stream) {
  if (rows * cols == 0) return;
  with_dtype(out.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(stream, finish_kernel<T>, linear_grid(rows * cols), dim3(kLinearThreads), 0, sum, bias,
           rows, cols, static_cast<T*>(out.data), out.row_stride);
  });
}

}  // namespace

void fill_rows(const OutputView& out, int64_t rows, int64_t cols, const float* bias,
               const Stream& stream) {
  finish_rows(nullptr, bias, out, rows, cols, stream);
}

void gemm_slices(const GemmArgs& args, const std::vector<Slice>& slices, const OutputView& out,
                 float* sum, const Stream& stream) {
  const bool sliced = slices.size() > 1;
  GemmArgs part = args;
  part.type = sliced ? OutputType::kFloat32 : output_type(out.dtype);
  part.out = sliced ? sum : out.data;
  part.out_stride = sliced ? args.n : out.row_stride;
  if (sliced) part.epilogue.bias = nullptr;
  for (const Slice& slice : slices) {
    part.a = args.a + slice.begin;
    part.b = args.b + slice.begin;
    part.k = round_up(slice.end - slice.begin, kDepthAlign);
    part.epilogue.accumulate = slice.begin > 0;
    gemm(part, stream);
  }
  if (sliced) finish_rows(sum, args.epilogue.bias, out, args.m, args.n, stream);
}

namespace {

struct QuantizeScratch {
  QuantizeScratch(Arena& arena, int64_t rows, int64_t cols)
      : columns(arena.take<uint32_t>(cols)),
        slot(arena.take<int32_t>(cols)),
        regular(arena.take<uint32_t>(rows)),
        outlier(arena.take<uint32_t>(rows)) {}
  uint32_t* columns;  // absmax of columns
  int32_t* slot;
  uint32_t *regular, *outlier;  // absmax of rows
};

}  // namespace

int64_t quantize_workspace(int64_t rows, int64_t cols) {
  return Workspace<QuantizeScratch>::bytes(rows, cols);
}

void quantize(const MatrixView& x, const float* fold, bool transposed, const Quantization& how,
              int8_t* q, float* scale, void* workspace, const Stream& stream) {
  const DeviceGuard guard(stream);
  Arena memory(workspace);
  const QuantizeScratch at(memory, x.rows, x.cols);
  if (!transposed)
    return quantize_rows(x, fold, {}, how, {at.regular, nullptr}, {q, nullptr, scale}, stream);
  column_stats(x, {fold, false, is_tensor(how), at.columns, nullptr, nullptr}, stream);
  quantize_columns(x, fold, at.columns, how, {nullptr, q, scale}, stream);
}

void quantize_input(const MatrixView& x, const SplitSpec& split, const Quantization& how,
                    const QuantizedInput& to, void* workspace, const Stream& stream) {
  const DeviceGuard guard(stream);
  Arena memory(workspace);
  const QuantizeScratch at(memory, x.rows, x.cols);
  OutlierColumns outliers;
  outliers.outlier_bits = split.outlier_bits;
  if (split.capacity > 0) {
    column_stats(x, {nullptr, true, false, at.columns, nullptr, nullptr}, stream);
    choose_columns(at.columns, x.cols, split, to.index, at.slot, to.count, stream);
    outliers = {at.slot, to.index, to.count, split.capacity, split.outlier_bits};
  } else {
    fill_zero(to.count, 2 * static_cast<int64_t>(sizeof(int32_t)), stream);
  }
  const AbsmaxBits absmax{at.regular, at.outlier};
  quantize_rows(x, nullptr, outliers, nearest(how), absmax, {to.values, to.saved_values, to.scale},
                stream);
  quantize_high_limbs(x, outliers, how, absmax, to.high, to.saved_high, stream);
}

namespace {

struct MultiplyScratch {
  MultiplyScratch(Arena& arena, int64_t m, int64_t n, int64_t k, int64_t capacity, bool packed)
      : slices(slice_depth(k, capacity)),
        weight(arena, packed ? 0 : n, k),
        high(arena.take<int8_t>(n * round_up(capacity, kDepthAlign))),
        sum(take_slice_sum(arena, slices, m, n)) {}
  std::vector<Slice> slices;
  Int8Scratch weight;
  int8_t* high;
  float* sum;
};

}  // namespace

int64_t multiply_workspace(int64_t m, int64_t n, int64_t k, int64_t capacity, bool packed) {
  return Workspace<MultiplyScratch>::bytes(m, n, k, capacity, packed);
}

void linear_multiply(const MultiplyArgs& args, void* workspace, const Stream& stream) {
  const int64_t m = args.m, n = args.weight.rows, k = args.weight.cols;
  if (k > kSliceDepth && args.capacity > 0)
    throw UnsupportedError(
        concat("int8tile::linear_multiply: on CUDA outliers can be split for up to ", kSliceDepth,
               " input features; got ", k));
  const DeviceGuard guard(stream);
  if (m == 0 || n == 0) return;
  if (k == 0) return fill_rows(args.out, m, n, args.bias, stream);
  Arena memory(workspace);
  const MultiplyScratch at(memory, m, n, k, args.capacity, args.packed.values != nullptr);
  Int8Matrix weight = args.packed;
  if (!weight.values) {
    quantize_rows(args.weight, nullptr, {}, nearest(args.how), {at.weight.absmax, nullptr},
                  {at.weight.values, nullptr, at.weight.scale}, stream);
    weight = {at.weight.values, at.weight.scale};
  }
  GemmArgs gemm;
  gemm.m = m, gemm.n = n, gemm.k = k;
  gemm.a = args.input.values;
  gemm.b = weight.values;
  gemm.a_stride = gemm.b_stride = round_up(k, kDepthAlign);
  if (args.capacity > 0) {
    const OutlierColumns outliers{nullptr, args.input.index, args.input.count, args.capacity};
    gather_columns(weight.values, n, gemm.b_stride, outliers, at.high, stream);
    gemm.a_high = args.input.high;
    gemm.b_high = at.high;
    gemm.high_stride = round_up(args.capacity, kDepthAlign);
    gemm.high_count = args.input.count;
  }
  gemm.epilogue = {args.input.scale, weight.scale, 1, args.bias, false};
  gemm_slices(gemm, at.slices, args.out, at.sum, stream);
}

void multiply_int8(const Int8Product& p, const Stream& stream) {
  const DeviceGuard guard(stream);
  if (p.m == 0 || p.n == 0) return;
  GemmArgs args;
  args.m = p.m, args.n = p.n, args.k = p.k;
  args.a = p.a;
  args.b = p.b;
  args.a_stride = args.b_stride = p.k;
  if (p.high_columns > 0) {
    args.a_high = p.a_high;
    args.b_high = p.b_high;
    args.high_stride = p.high_columns;
    args.high_count = p.high_count;
  }
  args.out = p.out;
  args.out_stride = p.n;
  args.type = OutputType::kInt32;
  gemm(args, stream);
}

}  // namespace int8tile::cuda
