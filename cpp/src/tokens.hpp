// Outlier tokens of a gradient: rows of g that the gradient of the weight sums in two limbs.
#pragma once

#include <cstdint>
#include <vector>

#include "int8tile/isa.hpp"
#include "int8tile/types.hpp"

namespace int8tile {

/// The outlier tokens of g[m, n], block by block.
struct OutlierTokens {
  std::vector<int32_t> index;  // [slots]; repeated where a block has fewer rows that are not zero
  std::vector<int32_t> slot;   // [m] of each token, -1: regular
};

/// In each block the rows with the largest absmax of g[i,:] * fold[i]; of equal ones the first.
/// fold // [m]; null: ones
OutlierTokens find_outlier_tokens(const MatrixView& g, const float* fold, const CpuFacts& cpu);

/// Bits of max over the outlier tokens of |g[i,j] * fold[i]|, [n].
std::vector<uint32_t> token_absmax(const MatrixView& g, const float* fold,
                                   const OutlierTokens& tokens, const CpuFacts& cpu);

}  // namespace int8tile
