// Outlier tokens of a gradient on the device; the choice is that of the CPU (cpp/src/tokens.hpp).
#pragma once

#include <cstdint>

#include "int8tile/cuda.hpp"

namespace int8tile::cuda {

/// The largest rows of each block of g, in memory of the caller.
struct OutlierTokens {
  int64_t slots = 0;         // a multiple of kTokensPerBlock; 0: there are none
  int32_t* slot = nullptr;   // [rows] of each token, -1: regular
  int32_t* index = nullptr;  // [slots] its token; any of the block where that has fewer rows
  int32_t* count = nullptr;  // [1] slots, where the GEMM reads it
};

/// row_absmax // [rows] bits of g. fold // [rows] multiplies them; null: ones.
void choose_tokens(const uint32_t* row_absmax, const float* fold, int64_t rows,
                   const OutlierTokens& tokens, const Stream& stream);

}  // namespace int8tile::cuda
