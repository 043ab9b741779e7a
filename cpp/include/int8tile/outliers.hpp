// Stage 1: which columns of an activation are outliers.
#pragma once

#include "int8tile/isa.hpp"
#include "int8tile/types.hpp"

namespace int8tile {

struct OutlierCounts {
  int32_t found = 0;     // columns held in the panels
  int32_t overflow = 0;  // columns above the threshold that the capacity left out
};

/// Finds the columns j with max_i |x[i,j]| > threshold over finite values.
///
/// index  // [capacity] int32, ascending, unused slots -1
/// mask   // [cols] uint32, 0 at outlier columns, else 0x7fffffff
/// largest  // [capacity] bits of the finite absmax of the columns found; null: not wanted
/// More than `capacity`: the ones with the largest absmax are kept, ties to the lower index.
/// A capacity of 0 turns the split off: x is not read.
OutlierCounts detect_outliers(const MatrixView& x, const SplitSpec& split, const CpuFacts& cpu,
                              int32_t* index, uint32_t* mask, uint32_t* largest = nullptr);

}  // namespace int8tile
