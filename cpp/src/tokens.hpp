// Outlier tokens of a gradient: rows of g that the gradient of the weight sums in two limbs.
#pragma once

#include <cstdint>
#include <vector>

#include "int8tile/isa.hpp"
#include "int8tile/types.hpp"

namespace int8tile {

/// The outlier tokens of g[m, n]: in each block the rows with the largest absmax of
/// g[i,:] * fold[i]; of equal ones the first. A block's are written by whoever chooses them alone.
struct OutlierTokens {
  /// Of as many rows as have any; none is chosen yet. fold // [m]; null: ones
  OutlierTokens(int64_t m, const float* fold);

  /// absmax // bits of the block's rows from `first` on times their fold; is overwritten
  void choose(int64_t first, uint32_t* absmax);
  float fold_of(int64_t token) const { return fold ? fold[token] : 1.0f; }

  int64_t block;        // rows of one
  bool chosen = false;  // all of them, before the pass that reads the columns
  const float* fold;
  std::vector<int32_t> index;       // [whole turns of K]; any token again where there is none
  std::vector<int32_t> slot;        // [m] of each token in index, -1: regular
  std::vector<float> regular_fold;  // [m] fold, and zero of the outlier tokens
};

/// Bits of the absmax of each row from `first` on, times its fold. buffer // [cols]
void folded_absmax(const MatrixView& g, const OutlierTokens& tokens, const Kernel& kernel,
                   int64_t first, int64_t rows, float* buffer, uint32_t* absmax);

/// Chooses all of them in a pass of its own, for blocks of any size.
void choose_tokens(const MatrixView& g, OutlierTokens& tokens, const CpuFacts& cpu);

}  // namespace int8tile
