// Stage 1 on the device: column statistics and the choice of outlier columns.
#pragma once

#include "int8tile/cuda.hpp"

namespace int8tile::cuda {

/// Rows that are added in order; sums of blocks are then added in order, as on the CPU.
inline constexpr int64_t kColumnBlock = 48;

/// What is wanted of the columns of x.
struct ColumnStats {
  const float* fold = nullptr;          // [rows] multiplies x before the absmax (not the sum)
  bool finite_only = false;             // inf and NaN are skipped
  bool tensor = false;                  // one absmax for all columns
  uint32_t* absmax = nullptr;           // [cols] (or [1]) bits
  float* sum = nullptr;                 // [cols]; null: not wanted
  float* block_sums = nullptr;          // [ceil(rows / 48), cols], where sums are wanted
  uint32_t* row_absmax = nullptr;       // [rows] bits of x without the fold; null: not wanted
  const int32_t* token_slot = nullptr;  // [rows] -1: regular; null: all are. Not with row_absmax
  uint32_t* token_absmax = nullptr;     // like absmax, of the outlier tokens
  const uint32_t* wanted = nullptr;     // see Quantization
};

void column_stats(const MatrixView& x, const ColumnStats& stats, const Stream& stream);

/// absmax // [cols] bits. index // [capacity], ascending, unused slots -1. slot // [cols], the
/// place of a column in `index` or -1. count // [2] found, overflow. Over capacity the largest
/// absmax stay, ties to the lower index.
void choose_columns(const uint32_t* absmax, int64_t cols, const SplitSpec& split, int32_t* index,
                    int32_t* slot, int32_t* count, const Stream& stream);

}  // namespace int8tile::cuda
