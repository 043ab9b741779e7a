// Stage 5: the one matrix product, out[m,n] = a[m,k] @ b[n,k].T over segmented K.
#pragma once

#include "int8tile/epilogue.hpp"
#include "int8tile/plan.hpp"

namespace int8tile {

/// Packed operands; panel layouts are described at QuantizeTargets.
struct GemmOperands {
  const int8_t* a = nullptr;              // depth k_padded
  const uint8_t* b = nullptr;             // depth k_padded
  const int32_t* compensation = nullptr;  // [slices][m]
  int64_t outliers = 0;                   // columns in the limb panels
  const int8_t* a_high = nullptr;         // depth round_up(outliers, 4)
  const int8_t* a_low = nullptr;          // the same; null where the low limbs are in place
  const uint8_t* b_outlier = nullptr;     // depth round_up(outliers, 4)
};

/// The whole product, all slices, dequantised into epilogue.out.
void gemm(const GemmPlan& plan, const GemmOperands& operands, const Epilogue& epilogue);

/// The exact accumulators of one slice; integers // [m, n] int32, row-major.
void gemm_integers(const GemmPlan& plan, const GemmOperands& operands, std::size_t slice,
                   int32_t* integers);

/// Row-major int8 operands of the raw product; any value in [-128, 127].
struct Int8Product {
  int64_t m = 0, n = 0, k = 0;
  const int8_t* a = nullptr;  // [m, k]
  const int8_t* b = nullptr;  // [n, k]
  int64_t high_columns = 0;
  const int8_t* a_high = nullptr;  // [m, high_columns]
  const int8_t* b_high = nullptr;  // [n, high_columns]
};

/// out[m,n] = ((a_high @ b_high.T) << 7) + a @ b.T, exact in int32. Packs both operands first.
void multiply_int8(const Int8Product& product, const CpuFacts& cpu, int32_t* out);

}  // namespace int8tile
