// Stages 3 and 4a: float matrices to int8, written straight into the layouts the GEMM reads.
#pragma once

#include <vector>

#include "int8tile/columns.hpp"
#include "int8tile/isa.hpp"
#include "int8tile/plan.hpp"
#include "int8tile/types.hpp"

namespace int8tile {

/// The scale of one row, column or tensor. `scale` is in real units per integer step, `inv` its
/// reciprocal (0 for an all-zero or non-finite row) and 2^shift the step of the outlier columns.
struct Scale {
  float scale = 0.0f;
  float inv = 0.0f;
  int shift = 0;
  uint32_t absmax = 0;  // bits of what it was made for, the larger of the two parts
};

/// Scale of values whose absmax has the bits `regular` (INT8 part) and `outlier` (limb part).
/// Non-finite: scale NaN, inv 0. Below 1e-30: scale 0, inv 0.
Scale make_scale(uint32_t regular, uint32_t outlier, ScaleKind kind, int outlier_bits);

/// Columns of a matrix in float32, each contiguous.
struct ColumnValues {
  const int32_t* index = nullptr;  // [count]
  int64_t count = 0;
  float* values = nullptr;  // [count][stride]
  int64_t stride = 0;       // at least the matrix's rows
};

/// Where the quantised integers of a matrix q[rows, cols] go; null means not wanted.
///
/// Panels are the GEMM's layouts: A panels [ceil(r/6)][depth/4][6][4] (the last panel holds only
/// the rows that remain) and B panels [ceil(r/nr)][depth/4][nr][4] plus Kernel::b_offset, with
/// depth padded to 16. `a` and `b` take rows of q as panel rows, `a_transposed` and
/// `b_transposed` take columns of q.
struct QuantizeTargets {
  int8_t* row_major = nullptr;   // [rows, cols]
  int8_t* transposed = nullptr;  // [cols, rows]
  int8_t* a = nullptr;
  uint8_t* b = nullptr;
  int8_t* a_transposed = nullptr;
  uint8_t* b_transposed = nullptr;
  // Row sums for the panels of A: [slices][rows of the operand], times -b_offset.
  int32_t* compensation = nullptr;
  const std::vector<Slice>* slices = nullptr;  // ranges of the operand's depth; null: one
  uint32_t* absmax = nullptr;  // [rows] bits that gave each row its scale; by quantize_rows
  const ColumnValues* columns = nullptr;  // taken out of x as it is; by quantize_rows
};

/// Where the limbs of the outlier columns go. `count` columns were found, room is for `capacity`.
struct OutlierTargets {
  const int32_t* index = nullptr;   // [count]
  const uint32_t* mask = nullptr;   // [cols]
  const float* inv_gain = nullptr;  // [count] multiplies the outlier columns first; null: ones
  int64_t count = 0;
  int outlier_bits = 12;
  bool low_in_place = false;  // the low limb stands at its own column of the regular part
  int8_t* a_high = nullptr;   // A panels of depth round_up(count, 4)
  int8_t* a_low = nullptr;    // the same, where the low limbs are not in place
  uint8_t* b_high_transposed = nullptr;  // B panels over rows; panel rows are outlier columns
  int8_t* high = nullptr;                // row-major [rows, capacity], zero beyond count
  int8_t* low = nullptr;
  int64_t capacity = 0;
};

/// Where rows of x go that are quantised in two limbs by quantize_columns.
struct TokenTargets {
  const int32_t* slot = nullptr;     // [rows] of `high`, -1: a regular row
  const uint32_t* absmax = nullptr;  // [cols] bits, of these rows times their fold
  int8_t* high = nullptr;            // row-major [slots, stride]; low limbs stand in place
  int64_t stride = 0;
};

/// One scale per row of x (or one for the tensor). fold // [rows] multiplies x first; may be null.
/// scale // [rows] float32. With low limbs in place they are also in `b_transposed`, always.
/// `columns` are gathered of x in the same pass (of x as it is, without `fold`); may be
/// null, and must be null where the target `b` is given.
void quantize_rows(const MatrixView& x, const float* fold, const QuantizeSpec& spec,
                   const CpuFacts& cpu, const QuantizeTargets& targets,
                   const OutlierTargets* outliers, float* scale,
                   const ColumnStats* columns = nullptr);

/// One scale per column of x (or one for the tensor). fold // [rows] multiplies x first; may be
/// null. absmax // [cols] bits of max_i |x[i,j] * fold[i]|, without `tokens`. scale // [cols]
/// float32. tokens // rows that keep 15 bits, rounded to nearest; null: none
void quantize_columns(const MatrixView& x, const float* fold, const uint32_t* absmax,
                      const QuantizeSpec& spec, const CpuFacts& cpu, const QuantizeTargets& targets,
                      float* scale, const TokenTargets* tokens = nullptr);
/// The same, finding the absmax first.
void quantize_columns(const MatrixView& x, const float* fold, const QuantizeSpec& spec,
                      const CpuFacts& cpu, const QuantizeTargets& targets, float* scale);

}  // namespace int8tile
