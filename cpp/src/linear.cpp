// The forward pass of a linear layer as one way to feed the GEMM; gradients: linear_backward.cpp.
#include "int8tile/linear.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

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
                 const CpuFacts& cpu, uint8_t* panels, float* scale) {
  QuantizeSpec nearest = spec;
  nearest.rounding = Rounding::kNearest;
  QuantizeTargets targets;
  if (transposed) {
    targets.b_transposed = panels;
    quantize_columns(weight, nullptr, nearest, cpu, targets, scale);
  } else {
    targets.b = panels;
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

}  // namespace

OutlierCounts quantize_input(const QuantizeInputArgs& args, const CpuFacts& cpu) {
  const MatrixView& x = args.input;
  const GemmPlan plan =
      plan_gemm(x.rows, 0, x.cols, args.split.capacity, args.split.outlier_bits, cpu);
  Arena block(args.to.block);
  const InputPanels at(block, plan);
  std::vector<uint32_t> mask(static_cast<std::size_t>(x.cols));
  const OutlierCounts counts = detect_outliers(x, args.split, cpu, args.to.index, mask.data());
  clear_unused(args, plan, counts.found);

  if (args.saved.regular)
    prepare_pages(args.saved.regular, saved_input_bytes(*cpu.kernel, x.rows, x.cols), cpu.threads);
  QuantizeTargets targets;
  targets.a = at.a;
  targets.compensation = at.compensation;
  targets.slices = &plan.slices;
  targets.b_transposed = args.saved.regular;
  OutlierTargets outliers;
  outliers.index = args.to.index;
  outliers.mask = mask.data();
  outliers.count = counts.found;
  outliers.outlier_bits = args.split.outlier_bits;
  outliers.low_in_place = plan.low_in_place();
  outliers.a_high = at.a_high;
  outliers.a_low = plan.low_in_place() ? nullptr : at.a_low;
  outliers.b_high_transposed = args.saved.high;
  quantize_rows(x, nullptr, args.spec, cpu, targets, &outliers, args.to.scale);
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

}  // namespace

OutlierCounts linear_forward(const ForwardArgs& args, const CpuFacts& cpu) {
  const Workspace<InputScratch> scratch(args, cpu);
  const InputScratch& at = scratch.at;
  const QuantizedInput input{at.block, args.input_scale ? args.input_scale : at.scale,
                             args.index ? args.index : at.index};
  const OutlierCounts counts =
      quantize_input({args.input, args.split, args.spec, args.saved, input}, cpu);
  linear_multiply({args.input.rows, input, args.split.capacity, counts.found, args.weight,
                   args.packed, args.spec, args.bias, args.out},
                  cpu);
  return counts;
}

}  // namespace int8tile
