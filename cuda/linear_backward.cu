// The two gradients of a linear layer as two ways to feed the GEMM; see linear.cu for the forward.
#include "launch.cuh"
#include "linear.cuh"
#include "outliers.cuh"
#include "tokens.cuh"

namespace int8tile::cuda {
namespace {

struct GradInputScratch {
  GradInputScratch(Arena& arena, int64_t m, int64_t n, int64_t k, bool packed)
      : slices(slice_depth(n, 0)),
        grad(arena, m, n),
        weight(arena, packed ? 0 : k, n),
        sum(take_slice_sum(arena, slices, m, k)) {}
  std::vector<Slice> slices;
  Int8Scratch grad, weight;
  float* sum;
};

}  // namespace

int64_t grad_input_workspace(int64_t m, int64_t n, int64_t k, bool packed) {
  return Workspace<GradInputScratch>::bytes(m, n, k, packed);
}

namespace {

// The second step, which reads nothing of g.
void multiply_grad_input(const GradInputArgs& args, const GradInputScratch& at,
                         const Stream& stream) {
  Int8Matrix weight = args.packed;
  if (!weight.values) {
    const Quantization how = nearest(args.how);
    ColumnStats stats;
    stats.tensor = is_tensor(how);
    stats.absmax = at.weight.absmax;
    column_stats(args.weight, stats, stream);
    quantize_columns(args.weight, nullptr, at.weight.absmax, {}, how,
                     {nullptr, at.weight.values, at.weight.scale}, stream);
    weight = {at.weight.values, at.weight.scale};
  }
  GemmArgs gemm;
  gemm.m = args.grad_output.rows, gemm.n = args.weight.cols, gemm.k = args.grad_output.cols;
  gemm.a = at.grad.values;
  gemm.b = weight.values;
  gemm.a_stride = gemm.b_stride = round_up(gemm.k, kDepthAlign);
  gemm.epilogue = {at.grad.scale, weight.scale, 1, nullptr, false};
  gemm_slices(slice_gemm(gemm, at.slices), args.out, at.sum, stream);
}

}  // namespace

void linear_grad_input(const GradInputArgs& args, void* workspace, const Stream& stream) {
  require_aligned("int8tile::linear_grad_input", "packed_weight", args.packed.values);
  const DeviceGuard guard(stream);
  const int64_t m = args.grad_output.rows, n = args.grad_output.cols, k = args.weight.cols;
  if (n == 0) return fill_rows(args.out, m, k, nullptr, stream);
  if (m == 0 || k == 0) return;
  Arena memory(workspace);
  const GradInputScratch at(memory, m, n, k, args.packed.values != nullptr);
  quantize_rows(args.grad_output, nullptr, {}, args.how, {at.grad.absmax, nullptr},
                {at.grad.values, nullptr, at.grad.scale}, stream);
  multiply_grad_input(args, at, stream);
}

namespace {

/// Outlier tokens of g, and what they meet in the saved input; nothing where there are none.
struct TokenScratch {
  TokenScratch(Arena& arena, int64_t m, int64_t n, int64_t k, int64_t capacity, bool grad_split)
      : slots(grad_split ? token_slots(m) : 0),
        stride(round_up(slots, kDepthAlign)),
        rows(arena.take<uint32_t>(slots > 0 ? m : 0)),
        slot(arena.take<int32_t>(slots > 0 ? m : 0)),
        index(arena.take<int32_t>(slots)),
        count(arena.take<int32_t>(slots > 0 ? 1 : 0)),
        absmax(arena.take<uint32_t>(slots > 0 ? n : 0)),
        high(arena.take<int8_t>(n * stride)),
        input(arena.take<int8_t>(k * stride)),
        limb(arena.take<int8_t>(capacity * stride)) {}
  int64_t slots, stride;
  uint32_t* rows;  // absmax of the rows of g
  int32_t *slot, *index, *count;
  uint32_t* absmax;             // of the columns, of outlier tokens alone
  int8_t *high, *input, *limb;  // [n, stride], [k, stride], [capacity, stride]
};

struct GradWeightScratch {
  GradWeightScratch(Arena& arena, int64_t m, int64_t n, int64_t k, int64_t capacity,
                    bool grad_split)
      : slices(slice_depth(m, 0)),
        grad(arena, n, m),
        block_sums(arena.take<float>(ceil_div(m, kColumnBlock) * n)),
        sum(take_slice_sum(arena, slices, n, k)),
        low(arena.take<int8_t>(capacity * round_up(m, kDepthAlign))),
        high_acc(arena.take<int32_t>(n * capacity)),
        low_acc(arena.take<int32_t>(n * capacity)),
        limb_grad(arena.take<float>(slices.size() > 1 ? n * capacity : 0)),
        tokens(arena, m, n, k, capacity, grad_split) {}
  std::vector<Slice> slices;
  Int8Scratch grad;
  float *block_sums, *sum;
  int8_t* low;                  // rows of the saved input at the outlier columns
  int32_t *high_acc, *low_acc;  // [n, capacity]
  float* limb_grad;             // [n, capacity], sum of slices
  TokenScratch tokens;
};

/// Chooses the outlier tokens. row_absmax // [m] bits of g
TokenLimbs split_tokens(const uint32_t* row_absmax, const float* fold, const MatrixView& g,
                        const TokenScratch& at, const Stream& stream) {
  if (at.slots == 0) return {};
  choose_tokens(row_absmax, fold, g.rows, {at.slots, at.slot, at.index, at.count}, stream);
  fill_zero(at.high, g.cols * at.stride, stream);
  return {at.slot, at.absmax, at.high, at.stride};
}

/// High limbs of the tokens in front of the others. from // [rows, round_up(m, 16)], the operand b;
/// to // [rows, stride], what it has of them
void prepend_tokens(GemmArgs& gemm, const TokenScratch& at, const int8_t* from, int64_t rows,
                    int64_t tokens, int8_t* to, const Stream& stream) {
  if (at.slots == 0) return;
  gather_columns(from, rows, {nullptr, at.index, at.count, at.slots, tokens}, to, stream);
  gemm.a_high = at.high;
  gemm.b_high = to;
  gemm.high_stride = at.stride;
  gemm.high_count = at.count;
}

/// One slice of the limb columns of grad_w: 128 * high + low, combined in float32.
struct LimbColumns {
  const int32_t *high, *low;  // [rows, capacity]
  int64_t rows;
  OutlierColumns outliers;
  const float* row_scale;
  const float* col_scale;  // one value; null: 1
  float* sum;              // [rows, capacity], of several slices
  bool first, last;
};

constexpr float kLimbStep = 1 << kLimbBits;

template <class Out>
__global__ void limb_kernel(LimbColumns limbs, Out* out, int64_t stride) {
  const int64_t at = linear_index(), capacity = limbs.outliers.capacity;
  if (at >= limbs.rows * capacity) return;
  const int64_t i = at / capacity, t = at % capacity;
  if (!limbs.outliers.holds(t)) return;
  const float high = __fmul_rn(__int2float_rn(limbs.high[at]), kLimbStep);
  const float both = __fadd_rn(high, __int2float_rn(limbs.low[at]));
  float value = __fmul_rn(both, limbs.row_scale[i]);
  const float col_scale = limbs.col_scale ? *limbs.col_scale : 1.0f;
  const int32_t* gain = limbs.outliers.gain;
  value = __fmul_rn(value, gain ? __fmul_rn(col_scale, power_of_two(gain[t])) : col_scale);
  if (!limbs.first) value = __fadd_rn(limbs.sum[at], value);
  if (limbs.last)
    store_float(value, out + i * stride + limbs.outliers.column(t));
  else
    limbs.sum[at] = value;
}

/// Tokens lie innermost, so the operands of both products start at the slice's first token.
GemmArgs limb_gemm(const GradWeightArgs& args, const GradWeightScratch& at, const Slice& slice,
                   const int8_t* limb, int32_t* acc) {
  GemmArgs gemm;
  gemm.m = args.grad_output.cols, gemm.n = args.capacity;
  gemm.k = round_up(slice.end - slice.begin, kDepthAlign);
  gemm.a = at.grad.values + slice.begin;
  gemm.b = limb + slice.begin;
  gemm.a_stride = gemm.b_stride = round_up(args.grad_output.rows, kDepthAlign);
  gemm.live_columns = args.input.count;
  gemm.out = acc;
  gemm.out_stride = args.capacity;
  gemm.type = OutputType::kInt32;
  return gemm;
}

/// Scales of x lie on the summed axis, so they are folded into g; a scale of the tensor is not.
const float* fold_of(const GradWeightArgs& args) {
  return is_tensor(args.how) ? nullptr : args.input.scale;
}

const float* column_scale_of(const GradWeightArgs& args) {
  return is_tensor(args.how) ? args.input.scale : nullptr;
}

void limb_columns(const GradWeightArgs& args, const GradWeightScratch& at, const Stream& stream) {
  const int64_t n = args.grad_output.cols;
  OutlierColumns outliers{nullptr, args.input.index, args.input.count, args.capacity,
                          args.in_features};
  outliers.gain = args.input.gain;
  gather_rows(args.input.saved_values, round_up(args.grad_output.rows, kDepthAlign), outliers,
              at.low, stream);
  const auto multiply = [&](const Slice& slice, const int8_t* limb, int32_t* acc) {
    GemmArgs product = limb_gemm(args, at, slice, limb, acc);
    prepend_tokens(product, at.tokens, limb, args.capacity, args.grad_output.rows, at.tokens.limb,
                   stream);
    gemm(product, stream);
  };
  for (const Slice& slice : at.slices) {
    multiply(slice, args.input.saved_high, at.high_acc);
    multiply(slice, at.low, at.low_acc);
    const LimbColumns limbs{at.high_acc,  at.low_acc,       n,
                            outliers,     at.grad.scale,    column_scale_of(args),
                            at.limb_grad, slice.begin == 0, slice.end == at.slices.back().end};
    with_dtype(args.out.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      launch(stream, limb_kernel<T>, linear_grid(n * args.capacity), dim3(kLinearThreads), 0, limbs,
             static_cast<T*>(args.out.data), args.out.row_stride);
    });
  }
}

ColumnStats grad_stats(const GradWeightArgs& args, const GradWeightScratch& at,
                       const TokenLimbs& tokens) {
  ColumnStats stats;
  stats.token_slot = tokens.slot;
  stats.token_absmax = at.tokens.absmax;
  stats.fold = fold_of(args);
  stats.tensor = is_tensor(args.how);
  stats.absmax = at.grad.absmax;
  stats.sum = args.grad_bias;
  stats.block_sums = args.grad_bias ? at.block_sums : nullptr;
  return stats;
}

// The second step, which reads nothing of g.
void multiply_grad_weight(const GradWeightArgs& args, const GradWeightScratch& at,
                          const Stream& stream) {
  GemmArgs gemm;
  gemm.m = args.grad_output.cols, gemm.n = args.in_features, gemm.k = args.grad_output.rows;
  gemm.a = at.grad.values;
  gemm.b = args.input.saved_values;
  gemm.a_stride = gemm.b_stride = round_up(gemm.k, kDepthAlign);
  gemm.epilogue = {at.grad.scale, column_scale_of(args), 0, nullptr, false};
  prepend_tokens(gemm, at.tokens, args.input.saved_values, gemm.n, gemm.k, at.tokens.input, stream);
  gemm_slices(slice_gemm(gemm, at.slices), args.out, at.sum, stream);
  if (args.capacity > 0) limb_columns(args, at, stream);
}

}  // namespace

int64_t grad_weight_workspace(int64_t m, int64_t n, int64_t k, int64_t capacity, bool grad_split) {
  return Workspace<GradWeightScratch>::bytes(m, n, k, capacity, grad_split);
}

void linear_grad_weight(const GradWeightArgs& args, void* workspace, const Stream& stream) {
  require_aligned("int8tile::linear_grad_weight", "saved_input", args.input.saved_values);
  require_aligned("int8tile::linear_grad_weight", "saved_limbs", args.input.saved_high);
  const DeviceGuard guard(stream);
  const int64_t m = args.grad_output.rows, n = args.grad_output.cols, k = args.in_features;
  Arena memory(workspace);
  const GradWeightScratch at(memory, m, n, k, args.capacity, args.grad_split);
  TokenLimbs tokens;
  if (at.tokens.slots > 0 && n > 0 && k > 0) {
    Quantization rows = args.how;
    rows.granularity = Granularity::kRow;
    row_absmax(args.grad_output, nullptr, {}, {at.tokens.rows, nullptr}, rows, stream);
    tokens = split_tokens(at.tokens.rows, fold_of(args), args.grad_output, at.tokens, stream);
  }
  column_stats(args.grad_output, grad_stats(args, at, tokens), stream);
  if (m == 0) return fill_rows(args.out, n, k, nullptr, stream);
  if (n == 0 || k == 0) return;
  quantize_columns(args.grad_output, fold_of(args), at.grad.absmax, tokens, args.how,
                   {nullptr, at.grad.values, at.grad.scale}, stream);
  multiply_grad_weight(args, at, stream);
}

namespace {

struct BackwardScratch {
  BackwardScratch(Arena& arena, int64_t m, int64_t n, int64_t k, int64_t capacity, bool grad_split)
      : grad_input(arena, m, n, k, false), grad_weight(arena, m, n, k, capacity, grad_split) {}
  GradInputScratch grad_input;
  GradWeightScratch grad_weight;
};

}  // namespace

int64_t backward_workspace(int64_t m, int64_t n, int64_t k, int64_t capacity, bool grad_split) {
  return Workspace<BackwardScratch>::bytes(m, n, k, capacity, grad_split);
}

void linear_backward(const GradInputArgs& input_args, const GradWeightArgs& weight_args,
                     void* workspace, const Stream& stream) {
  const MatrixView& g = weight_args.grad_output;
  const int64_t k = weight_args.in_features;
  const bool empty = g.rows == 0 || g.cols == 0 || k == 0;
  // Of one scale for the tensor, outlier tokens leave the two gradients different ones.
  if (empty || (weight_args.grad_split && token_slots(g.rows) > 0 && is_tensor(weight_args.how))) {
    linear_grad_input(input_args, workspace, stream);
    return linear_grad_weight(weight_args, workspace, stream);
  }
  require_aligned("int8tile::linear_backward", "saved_input", weight_args.input.saved_values);
  require_aligned("int8tile::linear_backward", "saved_limbs", weight_args.input.saved_high);
  const DeviceGuard guard(stream);
  Arena memory(workspace);
  const BackwardScratch at(memory, g.rows, g.cols, k, weight_args.capacity, weight_args.grad_split);
  const Int8Scratch &rows = at.grad_input.grad, &columns = at.grad_weight.grad;
  const TokenScratch& split = at.grad_weight.tokens;
  const float* fold = fold_of(weight_args);
  if (split.slots > 0) row_absmax(g, nullptr, {}, {rows.absmax, nullptr}, input_args.how, stream);
  const TokenLimbs tokens = split_tokens(rows.absmax, fold, g, split, stream);
  ColumnStats stats = grad_stats(weight_args, at.grad_weight, tokens);
  if (!stats.tensor && !tokens.slot) stats.row_absmax = rows.absmax;
  column_stats(g, stats, stream);
  quantize_gradient(g, fold, {rows.absmax, columns.absmax}, tokens, input_args.how,
                    {rows.values, columns.values, rows.scale, columns.scale}, stream);
  multiply_grad_input(input_args, at.grad_input, stream);
  multiply_grad_weight(weight_args, at.grad_weight, stream);
}

}  // namespace int8tile::cuda
