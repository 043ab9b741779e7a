// Stage 7: the three GEMMs of a linear layer. Start reading here: each function is the pipeline
// outliers -> quantize -> gemm -> epilogue for one direction.
#pragma once

#include <cstdint>

#include "int8tile/outliers.hpp"
#include "int8tile/plan.hpp"
#include "int8tile/quantize.hpp"

namespace int8tile {

/// What the forward pass keeps of x for grad_weight. Opaque: B panels with tokens innermost.
/// Sizes in bytes come from saved_input_bytes and saved_limbs_bytes.
struct SavedInput {
  uint8_t* regular = nullptr;  // low limbs stand at the outlier columns
  uint8_t* high = nullptr;     // high limbs of the outlier columns; null with capacity 0
};

/// A weight that stays packed between calls; sizes from packed_bytes.
struct PackedWeight {
  const uint8_t* panels = nullptr;  // null: quantise the weight in this call
  const float* scale = nullptr;     // [rows of the operand]
  // [rows] bits of the absmax of each row (the matrix's with kTensor); null: found where needed
  const uint32_t* absmax = nullptr;
};

int64_t packed_bytes(const Kernel& kernel, int64_t rows, int64_t depth);
int64_t saved_input_bytes(const Kernel& kernel, int64_t m, int64_t k);
int64_t saved_limbs_bytes(const Kernel& kernel, int64_t m, int64_t capacity);

/// B panels of w[n,k] for the forward GEMM (transposed = false), or of w.T for grad_input.
/// absmax  // [n] bits that gave each row its scale, not transposed only; null: not wanted
/// columns // taken out of w on the way, not transposed only; null: none
void pack_weight(const MatrixView& weight, const QuantizeSpec& spec, bool transposed,
                 const CpuFacts& cpu, uint8_t* panels, float* scale, uint32_t* absmax = nullptr,
                 const ColumnValues* columns = nullptr);

/// x quantised for the forward GEMM; several weights may be multiplied with it.
struct QuantizedInput {
  void* block = nullptr;     // quantized_input_bytes, 64-byte aligned; opaque
  float* scale = nullptr;    // s_x [m]
  int32_t* index = nullptr;  // outlier columns [capacity], ascending, unused slots -1
};

int64_t quantized_input_bytes(int64_t m, int64_t k, int64_t capacity, const CpuFacts& cpu);

struct QuantizeInputArgs {
  MatrixView input;  // x [m, k]
  SplitSpec split;
  QuantizeSpec spec;
  SavedInput saved;  // null members: nothing is kept for backward
  QuantizedInput to;
};

/// Finds the outlier columns of x and quantises it. Returns how many were found and left out.
OutlierCounts quantize_input(const QuantizeInputArgs& args, const CpuFacts& cpu);

struct MultiplyArgs {
  int64_t rows = 0;      // m
  QuantizedInput input;  // from quantize_input with the same m, k and capacity
  int64_t capacity = 0;
  int64_t outliers = 0;  // columns found
  MatrixView weight;     // w [n, k]; its data is not read where `packed` is given
  PackedWeight packed;
  QuantizeSpec spec;  // of w
  MatrixView bias;    // [1, n]; data null: none
  OutputView out;     // y [m, n]
};

/// y = x @ w.T + bias.
void linear_multiply(const MultiplyArgs& args, const CpuFacts& cpu);

struct ForwardArgs {
  MatrixView input;   // x [m, k]
  MatrixView weight;  // w [n, k]; where `packed` is given, its data is only read for gains
  PackedWeight packed;
  MatrixView bias;  // [1, n]; data null: none
  SplitSpec split;
  bool outlier_gain = false;     // outlier columns of x divided, those of w multiplied by 2^e
  QuantizeSpec spec;             // of x and w
  SavedInput saved;              // null members: nothing is kept for backward
  float* input_scale = nullptr;  // [m]; null: not wanted
  int32_t* index = nullptr;      // [capacity]; null: not wanted
  int32_t* gain = nullptr;       // e [capacity], with outlier_gain; null: not wanted
  OutputView out;                // y [m, n]
};

/// quantize_input and linear_multiply in one: y = x @ w.T + bias.
OutlierCounts linear_forward(const ForwardArgs& args, const CpuFacts& cpu);

struct GradInputArgs {
  MatrixView grad_output;   // g [m, n]
  MatrixView weight;        // w [n, k]; not read where `packed` is given
  int64_t in_features = 0;  // k
  PackedWeight packed;      // of w.T
  QuantizeSpec spec;        // scale kind and granularity of g and w; rounding of g
  OutputView out;           // grad_x [m, k]
};

/// grad_x = g @ w.
void linear_grad_input(const GradInputArgs& args, const CpuFacts& cpu);

struct GradWeightArgs {
  MatrixView grad_output;  // g [m, n]
  const uint8_t* saved_regular = nullptr;
  const uint8_t* saved_high = nullptr;
  const float* input_scale = nullptr;  // s_x [m]
  const int32_t* index = nullptr;      // outlier columns, ascending
  const int32_t* gain = nullptr;       // e [outliers]: x was divided by 2^e there; null: zeros
  int64_t outliers = 0;
  int64_t in_features = 0;   // k
  bool split_tokens = true;  // the largest rows of g are summed in two limbs
  QuantizeSpec spec;
  OutputView out;              // grad_w [n, k]
  float* grad_bias = nullptr;  // [n] float32 sums of g; null: not wanted
};

/// grad_w = g.T @ x and, in the same pass over g, grad_bias = sum of g over tokens.
void linear_grad_weight(const GradWeightArgs& args, const CpuFacts& cpu);

/// Both gradients of one g, with one read of it less than apart; the same results bit for bit. Both
/// quantised copies of g live at once.
void linear_backward(const GradInputArgs& input_args, const GradWeightArgs& weight_args,
                     const CpuFacts& cpu);

/// The plan of the forward GEMM with workspace_bytes filled in.
GemmPlan plan_linear(int64_t m, int64_t n, int64_t k, int64_t capacity, int outlier_bits,
                     const CpuFacts& cpu);

}  // namespace int8tile
