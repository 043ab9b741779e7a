// Threshold on the column absmax and the deterministic choice under a capacity.
#include "int8tile/outliers.hpp"

#include <algorithm>
#include <bit>
#include <vector>

#include "int8tile/check.hpp"
#include "int8tile/columns.hpp"
#include "int8tile/plan.hpp"

namespace int8tile {
OutlierCounts detect_outliers(const MatrixView& x, const SplitSpec& split, const CpuFacts& cpu,
                              int32_t* index, uint32_t* mask, uint32_t* largest) {
  require(split.capacity >= 0, "int8tile::detect_outliers: capacity must not be negative; got ",
          split.capacity);
  require(x.cols <= kMaxSize, "int8tile::detect_outliers: columns must be at most ", kMaxSize,
          "; got ", x.cols);
  std::fill_n(index, split.capacity, -1);
  std::fill_n(mask, x.cols, 0x7fffffffu);
  if (split.capacity == 0) return {};
  std::vector<uint32_t> absmax(static_cast<std::size_t>(x.cols));
  column_stats(x, {nullptr, /*finite_only=*/true, absmax.data(), nullptr}, cpu);
  // Bits of non-negative floats order like the floats.
  const uint32_t threshold = std::bit_cast<uint32_t>(split.threshold);
  std::vector<int32_t> columns;
  for (int64_t j = 0; j < x.cols; ++j)
    if (absmax[static_cast<std::size_t>(j)] > threshold) columns.push_back(static_cast<int32_t>(j));
  OutlierCounts counts;
  const auto capacity = static_cast<std::size_t>(split.capacity);
  if (columns.size() > capacity) {
    counts.overflow = static_cast<int32_t>(columns.size() - capacity);
    std::stable_sort(columns.begin(), columns.end(), [&](int32_t a, int32_t b) {
      return absmax[static_cast<std::size_t>(a)] > absmax[static_cast<std::size_t>(b)];
    });
    columns.resize(capacity);
    std::sort(columns.begin(), columns.end());
  }
  counts.found = static_cast<int32_t>(columns.size());
  std::copy(columns.begin(), columns.end(), index);
  for (const int32_t j : columns) mask[j] = 0;
  if (largest)
    for (std::size_t t = 0; t < columns.size(); ++t)
      largest[t] = absmax[static_cast<std::size_t>(columns[t])];
  return counts;
}

}  // namespace int8tile
