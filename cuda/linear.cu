// The forward pass of a linear layer as one way to feed the GEMM; gradients: linear_backward.cu.
#include "gains.cuh"
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

std::vector<GemmArgs> slice_gemm(const GemmArgs& args, const std::vector<Slice>& slices) {
  std::vector<GemmArgs> products;
  for (const Slice& slice : slices) {
    GemmArgs part = args;
    part.a = args.a + slice.begin;
    part.b = args.b + slice.begin;
    part.k = round_up(slice.end - slice.begin, kDepthAlign);
    if (slice.begin > 0) part.high_count = nullptr;
    products.push_back(part);
  }
  return products;
}

void gemm_slices(std::vector<GemmArgs> products, const OutputView& out, float* sum,
                 const Stream& stream) {
  const bool sliced = products.size() > 1;
  const GemmArgs& first = products.front();
  const int64_t m = first.m, n = first.n;
  const float* bias = first.epilogue.bias;
  for (std::size_t s = 0; s < products.size(); ++s) {
    GemmArgs& part = products[s];
    part.type = sliced ? OutputType::kFloat32 : output_type(out.dtype);
    part.out = sliced ? sum : out.data;
    part.out_stride = sliced ? n : out.row_stride;
    part.epilogue.accumulate = s > 0;
    if (sliced) part.epilogue.bias = nullptr;
    gemm(part, stream);
  }
  if (sliced) finish_rows(sum, bias, out, m, n, stream);
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
  ColumnStats stats;
  stats.fold = fold;
  stats.tensor = is_tensor(how);
  stats.absmax = at.columns;
  stats.wanted = how.wanted;
  column_stats(x, stats, stream);
  quantize_columns(x, fold, at.columns, {}, how, {nullptr, q, scale}, stream);
}

void quantize_input(const MatrixView& x, const SplitSpec& split, const Quantization& how,
                    const GainWeight& gains, const QuantizedInput& to, void* workspace,
                    const Stream& stream) {
  const DeviceGuard guard(stream);
  Arena memory(workspace);
  const QuantizeScratch at(memory, x.rows, x.cols);
  OutlierColumns outliers;
  outliers.outlier_bits = split.outlier_bits;
  if (split.capacity > 0) {
    ColumnStats stats;
    stats.finite_only = true;
    stats.absmax = at.columns;
    column_stats(x, stats, stream);
    choose_columns(at.columns, x.cols, split, to.index, at.slot, to.count, stream);
    outliers = {at.slot, to.index, to.count, split.capacity, x.cols, split.outlier_bits, to.gain};
    if (to.gain) choose_gains(gains, how, at.columns, split.threshold, outliers, to.gain, stream);
  } else {
    fill_zero(to.count, 2 * static_cast<int64_t>(sizeof(int32_t)), stream);
  }
  const AbsmaxBits absmax{at.regular, at.outlier};
  const Int8Targets targets{to.values, to.saved_values, to.scale};
  quantize_rows(x, nullptr, outliers, nearest(how), absmax, targets, stream);
  if (to.gain) quantize_gained_low_limbs(x, outliers, how, absmax, targets, stream);
  quantize_high_limbs(x, outliers, how, absmax, to.high, to.saved_high, stream);
  if (to.low) lift_low_limbs(to.values, x.rows, outliers, to.low, stream);
}

namespace {

struct MultiplyScratch {
  MultiplyScratch(Arena& arena, int64_t m, int64_t n, int64_t k, int64_t capacity, bool packed)
      : slices(slice_depth(k, capacity)),
        low_columns(slices.size() > 1 ? round_up(capacity, kDepthAlign) : 0),
        first_depth(low_columns > 0 ? low_columns + slices.front().end : 0),
        weight(arena, packed ? 0 : n, k),
        outliers(arena.take<int8_t>(n * round_up(capacity, kDepthAlign))),
        first_input(arena.take<int8_t>(m * first_depth)),
        first_weight(arena.take<int8_t>(n * first_depth)),
        sum(take_slice_sum(arena, slices, m, n)) {}
  std::vector<Slice> slices;
  int64_t low_columns;  // in front of the first slice, where there are several
  int64_t first_depth;
  Int8Scratch weight;
  int8_t* outliers;                    // w_O [n, round_up(capacity, 16)]
  int8_t *first_input, *first_weight;  // [m, first_depth], [n, first_depth]
  float* sum;
};

/// to // [rows, left_bytes + bytes] = [left | right], of rows with the strides given.
void join_columns(const int8_t* left, int64_t left_bytes, const int8_t* right, int64_t right_stride,
                  int64_t bytes, int64_t rows, int8_t* to, const Stream& stream) {
  const auto size = [](int64_t value) { return static_cast<std::size_t>(value); };
  const auto copy = [&](int8_t* at, const int8_t* from, int64_t stride, int64_t width) {
    check(cudaMemcpy2DAsync(at, size(left_bytes + bytes), from, size(stride), size(width),
                            size(rows), cudaMemcpyDeviceToDevice, handle(stream)),
          "copy");
  };
  copy(to, left, left_bytes, left_bytes);
  copy(to + left_bytes, right, right_stride, bytes);
}

/// All limbs belong to the first of several slices: its low limbs go in front of its part of K, and
/// the weight's outlier columns likewise.
void prepend_low_limbs(GemmArgs& first, const int8_t* low, const MultiplyScratch& at,
                       const Stream& stream) {
  const int64_t depth = at.slices.front().end;
  join_columns(low, at.low_columns, first.a, first.a_stride, depth, first.m, at.first_input,
               stream);
  join_columns(at.outliers, at.low_columns, first.b, first.b_stride, depth, first.n,
               at.first_weight, stream);
  first.a = at.first_input;
  first.b = at.first_weight;
  first.k = first.a_stride = first.b_stride = at.first_depth;
}

/// The weight quantised, with its gains; the caller's own copy where there are none.
Int8Matrix forward_weight(const MultiplyArgs& args, const Int8Scratch& at, const Stream& stream) {
  if (args.packed.values && !args.input.gain) return args.packed;
  const AbsmaxBits absmax{args.weight_absmax ? args.weight_absmax : at.absmax, nullptr};
  const Int8Targets to{at.values, nullptr, at.scale};
  const float* scale = at.scale;
  if (args.packed.values) {
    const auto row = static_cast<std::size_t>(round_up(args.weight.cols, kDepthAlign));
    check(cudaMemcpy2DAsync(at.values, row, args.packed.values, row, row,
                            static_cast<std::size_t>(args.weight.rows), cudaMemcpyDeviceToDevice,
                            handle(stream)),
          "copy");
    scale = args.packed.scale;
  } else if (args.weight_absmax) {
    quantize_known_rows(args.weight, nullptr, {}, nearest(args.how), absmax, to, stream);
  } else {
    quantize_rows(args.weight, nullptr, {}, nearest(args.how), absmax, to, stream);
  }
  if (args.input.gain) {
    OutlierColumns outliers{nullptr, args.input.index, args.input.count, args.capacity,
                            args.weight.cols};
    outliers.gain = args.input.gain;
    gain_columns(args.weight, scale, outliers, at.values, stream);
  }
  return {at.values, scale};
}

}  // namespace

int64_t multiply_workspace(int64_t m, int64_t n, int64_t k, int64_t capacity, bool packed) {
  return Workspace<MultiplyScratch>::bytes(m, n, k, capacity, packed);
}

void linear_multiply(const MultiplyArgs& args, void* workspace, const Stream& stream) {
  const int64_t m = args.m, n = args.weight.rows, k = args.weight.cols;
  const char* who = "int8tile::linear_multiply";
  require_aligned(who, "block", args.input.values);
  require_aligned(who, "packed_weight", args.packed.values);
  const DeviceGuard guard(stream);
  if (m == 0 || n == 0) return;
  if (k == 0) return fill_rows(args.out, m, n, args.bias, stream);
  Arena memory(workspace);
  const bool as_packed = args.packed.values && !args.input.gain;
  const MultiplyScratch at(memory, m, n, k, args.capacity, as_packed);
  const Int8Matrix weight = forward_weight(args, at.weight, stream);
  GemmArgs gemm;
  gemm.m = m, gemm.n = n, gemm.k = k;
  gemm.a = args.input.values;
  gemm.b = weight.values;
  gemm.a_stride = gemm.b_stride = round_up(k, kDepthAlign);
  if (args.capacity > 0) {
    const OutlierColumns outliers{nullptr, args.input.index, args.input.count, args.capacity, k};
    gather_columns(weight.values, n, outliers, at.outliers, stream);
    gemm.a_high = args.input.high;
    gemm.b_high = at.outliers;
    gemm.high_stride = round_up(args.capacity, kDepthAlign);
    gemm.high_count = args.input.count;
  }
  gemm.epilogue = {args.input.scale, weight.scale, 1, args.bias, false};
  std::vector<GemmArgs> products = slice_gemm(gemm, at.slices);
  if (at.low_columns > 0) prepend_low_limbs(products.front(), args.input.low, at, stream);
  gemm_slices(std::move(products), args.out, at.sum, stream);
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
