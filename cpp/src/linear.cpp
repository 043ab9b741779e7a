// The forward pass of a linear layer as one way to feed the GEMM; gradients: linear_backward.cpp.
#include "int8tile/linear.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "gain.hpp"
#include "int8tile/check.hpp"
#include "int8tile/gemm.hpp"
#include "int8tile/memory.hpp"
#include "pack.hpp"
#include "rows.hpp"

namespace int8tile {

int64_t packed_bytes(const Kernel& kernel, int64_t rows, int64_t depth) {
  return round_up(rows, kernel.nr) * round_up(depth, kDepthAlign);
}

int64_t saved_input_bytes(const Kernel& kernel, int64_t m, int64_t k) {
  return packed_bytes(kernel, k, m);
}

int64_t saved_limbs_bytes(const Kernel& kernel, int64_t m, int64_t capacity) {
  return packed_bytes(kernel, capacity, m);
}

void pack_weight(const MatrixView& weight, const QuantizeSpec& spec, bool transposed,
                 const CpuFacts& cpu, uint8_t* panels, float* scale, uint32_t* absmax,
                 const ColumnValues* columns) {
  QuantizeSpec nearest = spec;
  nearest.rounding = Rounding::kNearest;
  QuantizeTargets targets;
  if (transposed) {
    targets.b_transposed = panels;
    quantize_columns(weight, nullptr, nearest, cpu, targets, scale);
  } else {
    targets.b = panels;
    targets.absmax = absmax;
    targets.columns = columns;
    quantize_rows(weight, nullptr, nearest, cpu, targets, nullptr, scale);
  }
}

namespace {

int64_t limb_depth(const GemmPlan& plan) { return round_up(plan.capacity, kGroup); }

// The opaque block of a quantised input: its A panels.
struct InputPanels {
  InputPanels(Arena& arena, const GemmPlan& plan)
      : a(arena.take<int8_t>(plan.m * plan.k_padded)),
        a_high(arena.take<int8_t>(plan.m * limb_depth(plan))),
        a_low(arena.take<int8_t>(plan.low_in_place() ? 0 : plan.m * limb_depth(plan))),
        compensation(arena.take<int32_t>(plan.m * static_cast<int64_t>(plan.slices.size()))) {}
  int8_t *a, *a_high, *a_low;
  int32_t* compensation;
};

struct ForwardScratch {
  ForwardScratch(Arena& arena, const GemmPlan& plan, bool pack_weight, bool bias)
      : b(arena.take<uint8_t>(pack_weight ? packed_bytes(*plan.cpu.kernel, plan.n, plan.k) : 0)),
        b_outlier(arena.take<uint8_t>(round_up(plan.n, plan.cpu.kernel->nr) * limb_depth(plan))),
        weight_scale(arena.take<float>(pack_weight ? plan.n : 0)),
        bias_float(arena.take<float>(bias ? plan.n : 0)) {}
  uint8_t *b, *b_outlier;
  float *weight_scale, *bias_float;
};

// Only the output is left to fill where K is empty: y = bias.
void broadcast_bias(const MultiplyArgs& args, int64_t m, int64_t n, const CpuFacts& cpu) {
  std::vector<float> buffer(static_cast<std::size_t>(n), 0.0f);
  const float* row =
      args.bias.data ? load_row(*cpu.kernel, args.bias, 0, buffer.data()) : buffer.data();
  for (int64_t i = 0; i < m; ++i) store_row(*cpu.kernel, args.out, i, 0, row, n);
}

}  // namespace

GemmPlan plan_linear(int64_t m, int64_t n, int64_t k, int64_t capacity, int outlier_bits,
                     const CpuFacts& cpu) {
  GemmPlan plan = plan_gemm(m, n, k, capacity, outlier_bits, cpu);
  plan.workspace_bytes =
      Workspace<InputPanels>::bytes(plan) + Workspace<ForwardScratch>::bytes(plan, true, true);
  return plan;
}

int64_t quantized_input_bytes(int64_t m, int64_t k, int64_t capacity, const CpuFacts& cpu) {
  return Workspace<InputPanels>::bytes(plan_gemm(m, 0, k, capacity, kMaxOutlierBits, cpu));
}

namespace {

// Equal inputs give equal bytes: what the outliers found leave unused is zero, not old memory.
void clear_unused(const QuantizeInputArgs& args, const GemmPlan& plan, int64_t found) {
  const int64_t regular = plan.m * plan.k_padded;
  const int64_t bytes = Workspace<InputPanels>::bytes(plan);
  std::memset(static_cast<char*>(args.to.block) + regular, 0,
              static_cast<std::size_t>(bytes - regular));
  if (!args.saved.high) return;
  const Kernel& kernel = *plan.cpu.kernel;
  const int64_t used = found > 0 ? saved_limbs_bytes(kernel, plan.m, found) : 0;
  const int64_t all = saved_limbs_bytes(kernel, plan.m, plan.capacity);
  std::memset(args.saved.high + used, 0, static_cast<std::size_t>(all - used));
}

// Quantises x, of which `found` outlier columns are in args.to.index; mask and inv_gain as in
// OutlierTargets.
void quantize_found(const QuantizeInputArgs& args, int64_t found, const uint32_t* mask,
                    const float* inv_gain, const CpuFacts& cpu) {
  const MatrixView& x = args.input;
  const GemmPlan plan =
      plan_gemm(x.rows, 0, x.cols, args.split.capacity, args.split.outlier_bits, cpu);
  Arena block(args.to.block);
  const InputPanels at(block, plan);
  clear_unused(args, plan, found);

  if (args.saved.regular)
    prepare_pages(args.saved.regular, saved_input_bytes(*cpu.kernel, x.rows, x.cols), cpu.threads);
  QuantizeTargets targets;
  targets.a = at.a;
  targets.compensation = at.compensation;
  targets.slices = &plan.slices;
  targets.b_transposed = args.saved.regular;
  OutlierTargets outliers;
  outliers.index = args.to.index;
  outliers.mask = mask;
  outliers.inv_gain = inv_gain;
  outliers.count = found;
  outliers.outlier_bits = args.split.outlier_bits;
  outliers.low_in_place = plan.low_in_place();
  outliers.a_high = at.a_high;
  outliers.a_low = plan.low_in_place() ? nullptr : at.a_low;
  outliers.b_high_transposed = args.saved.high;
  quantize_rows(x, nullptr, args.spec, cpu, targets, &outliers, args.to.scale);
}

}  // namespace

OutlierCounts quantize_input(const QuantizeInputArgs& args, const CpuFacts& cpu) {
  const MatrixView& x = args.input;
  std::vector<uint32_t> mask(static_cast<std::size_t>(x.cols));
  const OutlierCounts counts = detect_outliers(x, args.split, cpu, args.to.index, mask.data());
  quantize_found(args, counts.found, mask.data(), nullptr, cpu);
  return counts;
}

void linear_multiply(const MultiplyArgs& args, const CpuFacts& cpu) {
  const int64_t m = args.rows, k = args.weight.cols, n = args.weight.rows;
  if (m == 0 || n == 0) return;
  if (k == 0) return broadcast_bias(args, m, n, cpu);
  const GemmPlan plan = plan_gemm(m, n, k, args.capacity, kMaxOutlierBits, cpu);
  Arena block(args.input.block);
  const InputPanels input(block, plan);
  const Workspace<ForwardScratch> scratch(plan, !args.packed.panels, args.bias.data != nullptr);
  const ForwardScratch& at = scratch.at;
  PackedWeight weight = args.packed;
  if (!weight.panels) {
    pack_weight(args.weight, args.spec, false, cpu, at.b, at.weight_scale);
    weight = {at.b, at.weight_scale};
  }
  if (args.outliers > 0)
    gather_outlier_weights(cpu, weight.panels, n, plan.k_padded, args.input.index, args.outliers,
                           at.b_outlier);
  const float* bias = args.bias.data ? load_row(*cpu.kernel, args.bias, 0, at.bias_float) : nullptr;
  GemmOperands operands;
  operands.a = input.a;
  operands.b = weight.panels;
  operands.compensation = input.compensation;
  operands.outliers = args.outliers;
  operands.a_high = input.a_high;
  operands.a_low = plan.low_in_place() ? nullptr : input.a_low;
  operands.b_outlier = at.b_outlier;
  gemm(plan, operands, {args.input.scale, weight.scale, bias, args.out});
}

namespace {

// What linear_forward needs of the quantised input and the caller does not want.
struct InputScratch {
  InputScratch(Arena& arena, const ForwardArgs& args, const CpuFacts& cpu)
      : block(arena.take<char>(
            quantized_input_bytes(args.input.rows, args.input.cols, args.split.capacity, cpu))),
        scale(args.input_scale ? nullptr : arena.take<float>(args.input.rows)),
        index(args.index ? nullptr : arena.take<int32_t>(args.split.capacity)) {}
  char* block;
  float* scale;
  int32_t* index;
};

struct GainScratch {
  GainScratch(Arena& arena, const ForwardArgs& args, const CpuFacts& cpu)
      : panels(arena.take<uint8_t>(packed_bytes(*cpu.kernel, args.weight.rows, args.weight.cols))),
        scale(arena.take<float>(args.packed.panels ? 0 : args.weight.rows)),
        weight_absmax(
            arena.take<uint32_t>(args.packed.panels && args.packed.absmax ? 0 : args.weight.rows)),
        column_absmax(arena.take<uint32_t>(args.split.capacity)),
        exponent(arena.take<int32_t>(args.split.capacity)),
        inv_gain(arena.take<float>(args.split.capacity)) {}
  uint8_t* panels;
  float* scale;
  uint32_t *weight_absmax, *column_absmax;
  int32_t* exponent;
  float* inv_gain;
};

// Outlier columns of the weight in float32. Columns that are whole pages apart would share few
// lines of a cache; some lines more spread them.
struct WeightColumns {
  WeightColumns(Arena& arena, int64_t n, int64_t count)
      : stride(round_up(n, kAlignment) + kAlignment), values(arena.take<float>(count * stride)) {}
  int64_t stride;
  float* values;
};

// The weight packed, with the gains of `count` outlier columns in it; their exponents are left in
// at.exponent. Panels of the caller stay as they are: where a column gains, they are copied first.
PackedWeight pack_with_gains(const ForwardArgs& args, const int32_t* index, int64_t count,
                             const CpuFacts& cpu, const GainScratch& at) {
  const MatrixView& w = args.weight;
  PackedWeight weight = args.packed;
  const bool gains =
      input_gains(at.column_absmax, count, args.split.capacity, args.split.threshold, at.exponent);
  const Workspace<WeightColumns> scratch(w.rows, gains ? count : 0);
  const ColumnValues columns{index, count, scratch.at.values, scratch.at.stride};
  if (!weight.panels) {
    pack_weight(w, args.spec, false, cpu, at.panels, at.scale, at.weight_absmax,
                gains ? &columns : nullptr);
    weight = {at.panels, at.scale, at.weight_absmax};
  } else if (gains) {
    load_columns(w, cpu, columns);
    if (!weight.absmax) {
      weight_absmax(w, args.spec.granularity, cpu, at.weight_absmax);
      weight.absmax = at.weight_absmax;
    }
  }
  if (!gains || !weight_gains(columns, w.rows, weight.absmax, cpu, at.exponent)) return weight;
  if (args.packed.panels) copy_panels(args.packed.panels, w, cpu, at.panels);
  gain_weight(columns, w, weight.scale, at.exponent, cpu, at.panels);
  weight.panels = at.panels;
  return weight;
}

// linear_forward with args.outlier_gain: the weight is packed before x is quantised.
OutlierCounts forward_with_gains(const ForwardArgs& args, const QuantizeInputArgs& input,
                                 const CpuFacts& cpu) {
  const Workspace<GainScratch> scratch(args, cpu);
  const GainScratch& at = scratch.at;
  std::vector<uint32_t> mask(static_cast<std::size_t>(args.input.cols));
  const OutlierCounts counts =
      detect_outliers(args.input, args.split, cpu, input.to.index, mask.data(), at.column_absmax);
  const PackedWeight weight = pack_with_gains(args, input.to.index, counts.found, cpu, at);
  for (int64_t t = 0; t < counts.found; ++t)
    at.inv_gain[t] = 1.0f / static_cast<float>(1 << at.exponent[t]);
  if (args.gain) std::copy_n(at.exponent, args.split.capacity, args.gain);
  quantize_found(input, counts.found, mask.data(), at.inv_gain, cpu);
  linear_multiply({args.input.rows, input.to, args.split.capacity, counts.found, args.weight,
                   weight, args.spec, args.bias, args.out},
                  cpu);
  return counts;
}

}  // namespace

OutlierCounts linear_forward(const ForwardArgs& args, const CpuFacts& cpu) {
  const Workspace<InputScratch> scratch(args, cpu);
  const InputScratch& at = scratch.at;
  const QuantizedInput input{at.block, args.input_scale ? args.input_scale : at.scale,
                             args.index ? args.index : at.index};
  const QuantizeInputArgs input_args{args.input, args.split, args.spec, args.saved, input};
  if (args.outlier_gain) return forward_with_gains(args, input_args, cpu);
  const OutlierCounts counts = quantize_input(input_args, cpu);
  linear_multiply({args.input.rows, input, args.split.capacity, counts.found, args.weight,
                   args.packed, args.spec, args.bias, args.out},
                  cpu);
  return counts;
}

}  // namespace int8tile
