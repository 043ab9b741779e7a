// Gains of outlier columns: powers of two that move from x to the weight where w has room for them.
#pragma once

#include <cstdint>

#include "int8tile/isa.hpp"
#include "int8tile/quantize.hpp"
#include "int8tile/types.hpp"

namespace int8tile {

/// Exponents e of the gains 2^e that x allows: the largest with threshold * 2^e <= its absmax,
/// which leaves the column an outlier, and at most kMaxGainExponent.
///
/// column_absmax  // [count] bits of the columns found, each above the threshold
/// exponent       // [capacity], 0 in unused slots
/// Returns whether any is above 0.
bool input_gains(const uint32_t* column_absmax, int64_t count, int64_t capacity, float threshold,
                 int32_t* exponent);

/// Lowers the exponents until |w[n,j]| * 2^e <= absmax[n] for all n, so that no gained weight can
/// be clipped. A column of zeros has the gain 1. Rows whose integers are all 0, because their
/// absmax is below kZeroAbsmax or not finite, do not count.
///
/// columns // of w
/// absmax  // [n] bits
/// Returns whether any is above 0.
bool weight_gains(const ColumnValues& columns, int64_t n, const uint32_t* absmax,
                  const CpuFacts& cpu, int32_t* exponent);

/// Takes columns out of w.
void load_columns(const MatrixView& weight, const CpuFacts& cpu, const ColumnValues& columns);

/// Panels of w[n, k] as they are.
void copy_panels(const uint8_t* from, const MatrixView& weight, const CpuFacts& cpu, uint8_t* to);

/// Rewrites the gained columns of B panels of w: quantised from w[:, j] * 2^e with the scale of
/// each row, scale // [n].
void gain_weight(const ColumnValues& columns, const MatrixView& weight, const float* scale,
                 const int32_t* exponent, const CpuFacts& cpu, uint8_t* panels);

/// Bits of the absmax of each row of w, or, with Granularity::kTensor, of the matrix: [n].
void weight_absmax(const MatrixView& weight, Granularity granularity, const CpuFacts& cpu,
                   uint32_t* absmax);

}  // namespace int8tile
