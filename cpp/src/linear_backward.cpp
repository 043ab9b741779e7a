// The two gradients of a linear layer as two ways to feed the GEMM; see linear.cpp for the forward.
#include <algorithm>
#include <optional>
#include <vector>

#include "int8tile/columns.hpp"
#include "int8tile/gemm.hpp"
#include "int8tile/linear.hpp"
#include "int8tile/memory.hpp"
#include "int8tile/parallel.hpp"
#include "pack.hpp"
#include "rows.hpp"
#include "tokens.hpp"

namespace int8tile {

namespace {

struct GradInputScratch {
  GradInputScratch(Arena& arena, const GemmPlan& plan, bool pack_weight)
      : a(arena.take<int8_t>(plan.m * plan.k_padded)),
        compensation(arena.take<int32_t>(plan.m * static_cast<int64_t>(plan.slices.size()))),
        grad_scale(arena.take<float>(plan.m)),
        b(arena.take<uint8_t>(pack_weight ? packed_bytes(*plan.cpu.kernel, plan.n, plan.k) : 0)),
        weight_scale(arena.take<float>(pack_weight ? plan.n : 0)) {}
  int8_t* a;
  int32_t* compensation;
  float* grad_scale;
  uint8_t* b;
  float* weight_scale;
};

void fill_zero(const OutputView& out, int64_t rows, int64_t cols, const CpuFacts& cpu) {
  const std::vector<float> zeros(static_cast<std::size_t>(cols), 0.0f);
  for (int64_t i = 0; i < rows; ++i) store_row(*cpu.kernel, out, i, 0, zeros.data(), cols);
}

// grad_x = g @ w in two steps; the second reads nothing of g.
class GradInput {
 public:
  GradInput(const GradInputArgs& args, const CpuFacts& cpu)
      : args_(args),
        plan_(plan_gemm(args.grad_output.rows, args.in_features, args.grad_output.cols, 0,
                        kMaxOutlierBits, cpu)),
        scratch_(plan_, !args.packed.panels) {}

  // `columns` are gathered of g in the same pass; may be null.
  void quantize(const ColumnStats* columns) const {
    QuantizeTargets targets;
    targets.a = scratch_.at.a;
    targets.compensation = scratch_.at.compensation;
    targets.slices = &plan_.slices;
    quantize_rows(args_.grad_output, nullptr, args_.spec, plan_.cpu, targets, nullptr,
                  scratch_.at.grad_scale, columns);
  }

  void multiply() const {
    const GradInputScratch& at = scratch_.at;
    PackedWeight weight = args_.packed;
    if (!weight.panels) {
      pack_weight(args_.weight, args_.spec, true, plan_.cpu, at.b, at.weight_scale);
      weight = {at.b, at.weight_scale};
    }
    GemmOperands operands;
    operands.a = at.a;
    operands.b = weight.panels;
    operands.compensation = at.compensation;
    gemm(plan_, operands, {at.grad_scale, weight.scale, nullptr, args_.out});
  }

 private:
  const GradInputArgs& args_;
  GemmPlan plan_;
  Workspace<GradInputScratch> scratch_;
};

}  // namespace

void linear_grad_input(const GradInputArgs& args, const CpuFacts& cpu) {
  const int64_t m = args.grad_output.rows, k = args.in_features;
  if (args.grad_output.cols == 0) return fill_zero(args.out, m, k, cpu);
  if (m == 0 || k == 0) return;
  const GradInput grad(args, cpu);
  grad.quantize(nullptr);
  grad.multiply();
}

namespace {

struct GradWeightScratch {
  GradWeightScratch(Arena& arena, const GemmPlan& plan, int64_t outliers, int64_t tokens)
      : a(arena.take<int8_t>(plan.m * plan.k_padded)),
        compensation(arena.take<int32_t>(plan.m * static_cast<int64_t>(plan.slices.size()))),
        grad_scale(arena.take<float>(plan.m)),
        input_scale(arena.take<float>(plan.n)),
        limbs(arena.take<uint8_t>(packed_bytes(*plan.cpu.kernel, 2 * outliers, plan.k))),
        limb_sum(arena.take<int32_t>(plan.m * 2 * outliers)),
        limb_grad(arena.take<float>(plan.m * outliers)),
        token_high(arena.take<int8_t>(tokens * round_up(plan.m, kDepthAlign))),
        a_high(arena.take<int8_t>(plan.m * tokens)),
        b_tokens(arena.take<uint8_t>(packed_bytes(*plan.cpu.kernel, plan.n, tokens))),
        limb_tokens(arena.take<uint8_t>(packed_bytes(*plan.cpu.kernel, 2 * outliers, tokens))) {}
  int8_t* a;
  int32_t* compensation;
  float* grad_scale;   // [n]
  float* input_scale;  // [k]
  uint8_t* limbs;      // the high limbs of all outlier columns of x, then the low ones
  int32_t* limb_sum;
  float* limb_grad;
  int8_t *token_high, *a_high;  // of g's outlier tokens
  uint8_t *b_tokens, *limb_tokens;
};

// The outlier tokens of g as limb panels of the operands.
struct TokenPanels {
  const CpuFacts& cpu;
  const OutlierTokens* tokens;  // null: there are none
  int64_t depth;                // of the regular panels of B

  // b // takes the panels of `rows` rows of operands.b
  void add(GemmOperands& operands, const int8_t* a_high, int64_t rows, uint8_t* b) const {
    if (!tokens) return;
    operands.outliers = static_cast<int64_t>(tokens->index.size());
    operands.a_high = a_high;
    operands.b_outlier = b;
    gather_outlier_weights(cpu, operands.b, rows, depth, tokens->index.data(), operands.outliers,
                           b);
  }
};

constexpr int64_t kLimbRows = 64;  // rows of grad_w per task

// grad_w[:, j] of the outlier columns: 128 * high + low, combined in float32 per slice.
void limb_columns(const GradWeightArgs& args, const GemmPlan& plan, const GradWeightScratch& at,
                  const TokenPanels& tokens) {
  const int64_t n = plan.m, count = args.outliers;
  std::vector<PanelRow> rows;  // of both limbs, which share a panel where they are few
  for (int64_t t = 0; t < count; ++t) rows.push_back({args.saved_high, t});
  for (int64_t t = 0; t < count; ++t) rows.push_back({args.saved_regular, args.index[t]});
  gather_panel_rows(plan.cpu, rows, plan.k_padded, at.limbs);
  const GemmPlan limb_plan = plan_gemm(n, 2 * count, plan.k, 0, kMaxOutlierBits, plan.cpu);
  GemmOperands operands;
  operands.a = at.a;
  operands.compensation = at.compensation;
  operands.b = at.limbs;
  tokens.add(operands, at.a_high, 2 * count, at.limb_tokens);
  for (std::size_t s = 0; s < plan.slices.size(); ++s) {
    gemm_integers(limb_plan, operands, s, at.limb_sum);
    parallel_for(plan.cpu.threads, ceil_div(n, kLimbRows), [&](int64_t block, int) {
      const int64_t end = std::min(n, (block + 1) * kLimbRows);
      for (int64_t i = block * kLimbRows; i < end; ++i)
        for (int64_t t = 0; t < count; ++t) {
          const int64_t at_t = i * count + t;
          const int32_t* high = at.limb_sum + i * 2 * count + t;
          const float sum = static_cast<float>(*high) * 128.0f + static_cast<float>(high[count]);
          const float value = sum * at.grad_scale[i] * at.input_scale[args.index[t]];
          at.limb_grad[at_t] = s == 0 ? value : at.limb_grad[at_t] + value;
          if (s + 1 == plan.slices.size())
            store_row(*plan.cpu.kernel, args.out, i, args.index[t], at.limb_grad + at_t, 1);
        }
    });
  }
}

// Row scales of x lie on the summed axis, so they are folded into g; a tensor scale is not.
const float* fold_of(const GradWeightArgs& args) {
  return args.spec.granularity == Granularity::kTensor ? nullptr : args.input_scale;
}

// grad_w = g.T @ x in two steps; the second reads nothing of g.
class GradWeight {
 public:
  GradWeight(const GradWeightArgs& args, const CpuFacts& cpu)
      : args_(args),
        plan_(plan_gemm(args.grad_output.cols, args.in_features, args.grad_output.rows, 0,
                        kMaxOutlierBits, cpu)) {
    absmax_.resize(static_cast<std::size_t>(plan_.m));
    if (args.split_tokens && token_block(plan_.k) > 0) {
      tokens_.emplace(plan_.k, fold_of(args));
      token_absmax_.resize(absmax_.size());
      // Not in the pass over the columns where larger blocks leave threads without work.
      if (tokens_->block > kTokenBlock || plan_.k < 2 * cpu.threads * kTokenBlock)
        choose_tokens(args.grad_output, *tokens_, cpu);
    }
    scratch_.emplace(plan_, args.outliers, slots());
  }

  // To gather of g before it is quantised.
  ColumnStats columns() {
    if (!tokens_) return {fold_of(args_), false, absmax_.data(), args_.grad_bias};
    return {tokens_->regular_fold.data(), false, absmax_.data(), args_.grad_bias, &*tokens_,
            token_absmax_.data()};
  }

  void quantize() const {
    const GradWeightScratch& at = scratch_->at;
    const int64_t n = plan_.m, stride = round_up(n, kDepthAlign);
    QuantizeTargets targets;
    targets.a_transposed = at.a;
    targets.compensation = at.compensation;
    targets.slices = &plan_.slices;
    if (!tokens_)
      return quantize_columns(args_.grad_output, fold_of(args_), absmax_.data(), args_.spec,
                              plan_.cpu, targets, at.grad_scale);
    std::fill_n(at.token_high, slots() * stride, int8_t{0});
    const TokenTargets token_targets{tokens_->slot.data(), token_absmax_.data(), at.token_high,
                                     stride};
    quantize_columns(args_.grad_output, fold_of(args_), absmax_.data(), args_.spec, plan_.cpu,
                     targets, at.grad_scale, &token_targets);
    pack_transposed(*plan_.cpu.kernel, {at.token_high, stride, 0, slots(), n}, slots(), at.a_high,
                    nullptr);
  }

  void multiply() const {
    const GradWeightScratch& at = scratch_->at;
    const TokenPanels tokens{plan_.cpu, tokens_ ? &*tokens_ : nullptr, plan_.k_padded};
    std::fill_n(at.input_scale, args_.in_features, fold_of(args_) ? 1.0f : args_.input_scale[0]);
    if (args_.gain)
      for (int64_t t = 0; t < args_.outliers; ++t)
        at.input_scale[args_.index[t]] *= static_cast<float>(1 << args_.gain[t]);
    GemmOperands operands;
    operands.a = at.a;
    operands.b = args_.saved_regular;
    operands.compensation = at.compensation;
    tokens.add(operands, at.a_high, plan_.n, at.b_tokens);
    gemm(plan_, operands, {at.grad_scale, at.input_scale, nullptr, args_.out});
    if (args_.outliers > 0) limb_columns(args_, plan_, at, tokens);
  }

 private:
  const GradWeightArgs& args_;
  GemmPlan plan_;
  std::optional<OutlierTokens> tokens_;
  std::vector<uint32_t> absmax_, token_absmax_;  // [n] bits, of g times its fold
  std::optional<Workspace<GradWeightScratch>> scratch_;

  int64_t slots() const { return tokens_ ? static_cast<int64_t>(tokens_->index.size()) : 0; }
};

}  // namespace

void linear_grad_weight(const GradWeightArgs& args, const CpuFacts& cpu) {
  const int64_t m = args.grad_output.rows, n = args.grad_output.cols, k = args.in_features;
  if (m == 0 || n == 0 || k == 0) {
    std::vector<uint32_t> absmax(static_cast<std::size_t>(n));
    column_stats(args.grad_output, {nullptr, false, absmax.data(), args.grad_bias}, cpu);
    if (m == 0) fill_zero(args.out, n, k, cpu);
    return;
  }
  GradWeight grad(args, cpu);
  column_stats(args.grad_output, grad.columns(), cpu);
  grad.quantize();
  grad.multiply();
}

void linear_backward(const GradInputArgs& input_args, const GradWeightArgs& weight_args,
                     const CpuFacts& cpu) {
  const int64_t m = weight_args.grad_output.rows, n = weight_args.grad_output.cols;
  const int64_t k = weight_args.in_features;
  if (m == 0 || n == 0 || k == 0) {
    linear_grad_input(input_args, cpu);
    linear_grad_weight(weight_args, cpu);
    return;
  }
  std::optional<GradInput> grad_input(std::in_place, input_args, cpu);
  GradWeight grad_weight(weight_args, cpu);
  const ColumnStats columns = grad_weight.columns();
  grad_input->quantize(&columns);
  grad_weight.quantize();  // while g is still in the caches
  grad_input->multiply();
  grad_input.reset();  // its workspace
  grad_weight.multiply();
}

}  // namespace int8tile
