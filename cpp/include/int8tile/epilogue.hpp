// Stage 6: exact int32 accumulators to real outputs,
// y = fl(fl(fl(acc) * row_scale) * col_scale) + bias, then the cast to the output dtype.
#pragma once

#include "int8tile/types.hpp"

namespace int8tile {

struct Kernel;

struct Epilogue {
  const float* row_scale = nullptr;  // [m]
  const float* col_scale = nullptr;  // [n]
  const float* bias = nullptr;       // [n] float32, or null
  OutputView out;                    // [m, n]
};

/// Writes `cols` float32 values as out[row, col ...] in the output's dtype.
void store_row(const Kernel& kernel, const OutputView& out, int64_t row, int64_t col,
               const float* values, int64_t cols);

/// Writes one block of accumulators [rows, stride]; `scratch` holds `cols` floats.
void dequantize_block(const Kernel& kernel, const Epilogue& epilogue, const int32_t* acc,
                      int64_t stride, int64_t row, int64_t rows, int64_t col, int64_t cols,
                      bool accumulate, float* scratch);

}  // namespace int8tile
