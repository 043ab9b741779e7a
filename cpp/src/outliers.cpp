// Column absmax, threshold and the deterministic choice under a capacity.
#include "int8tile/outliers.hpp"

#include <algorithm>
#include <bit>
#include <vector>

#include "int8tile/check.hpp"
#include "int8tile/parallel.hpp"
#include "rows.hpp"

namespace int8tile {
namespace {

constexpr int64_t kSumBlock = 256;    // rows; part of the result, since float32 sums are not exact
constexpr int64_t kAbsmaxBlock = 32;  // rows; a maximum is the same for any block

struct AbsmaxScratch {
  AbsmaxScratch(Arena& arena, int threads, int64_t cols, int64_t sum_blocks)
      : stride(round_up(cols, 16)),
        row(arena.take<float>(threads * stride)),
        largest(arena.take<uint32_t>(threads * stride)),
        sums(arena.take<float>(sum_blocks * stride)) {}
  int64_t stride;
  float* row;
  uint32_t* largest;
  float* sums;
};

}  // namespace

void column_absmax(const MatrixView& x, const float* fold, bool finite_only, const CpuFacts& cpu,
                   uint32_t* acc, float* sum) {
  const Kernel& kernel = *cpu.kernel;
  const int64_t block_rows = sum ? kSumBlock : kAbsmaxBlock;
  const int64_t blocks = ceil_div(x.rows, block_rows);
  const int threads = static_cast<int>(std::clamp<int64_t>(blocks, 1, cpu.threads));
  const Workspace<AbsmaxScratch> scratch(threads, x.cols, sum ? blocks : 0);
  const int64_t stride = scratch.at.stride;
  std::fill_n(scratch.at.largest, threads * stride, 0u);
  if (sum) std::fill_n(scratch.at.sums, blocks * stride, 0.0f);
  parallel_for(threads, blocks, [&](int64_t block, int thread) {
    float* buffer = scratch.at.row + thread * stride;
    uint32_t* largest = scratch.at.largest + thread * stride;
    const int64_t end = std::min(x.rows, (block + 1) * block_rows);
    for (int64_t i = block * block_rows; i < end; ++i) {
      const float* row = load_row(kernel, x, i, buffer);
      kernel.column_absmax(row, fold ? fold[i] : 1.0f, x.cols, finite_only, largest);
      if (sum) kernel.column_sum(row, x.cols, scratch.at.sums + block * stride);
    }
  });
  std::fill_n(acc, x.cols, 0u);
  for (int t = 0; t < threads; ++t)
    for (int64_t j = 0; j < x.cols; ++j)
      acc[j] = std::max(acc[j], scratch.at.largest[t * stride + j]);
  if (!sum) return;
  std::fill_n(sum, x.cols, 0.0f);
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t j = 0; j < x.cols; ++j) sum[j] += scratch.at.sums[block * stride + j];
}

OutlierCounts detect_outliers(const MatrixView& x, const SplitSpec& split, const CpuFacts& cpu,
                              int32_t* index, uint32_t* mask) {
  require(split.capacity >= 0, "int8tile::detect_outliers: capacity must not be negative; got ",
          split.capacity);
  std::fill_n(index, split.capacity, -1);
  std::fill_n(mask, x.cols, 0x7fffffffu);
  if (split.capacity == 0) return {};
  std::vector<uint32_t> absmax(static_cast<std::size_t>(x.cols));
  column_absmax(x, nullptr, /*finite_only=*/true, cpu, absmax.data());
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
  return counts;
}

}  // namespace int8tile
