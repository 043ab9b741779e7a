// Stage 4b: moving a strip of quantised rows into the panels that the GEMM reads.
#pragma once

#include <cstdint>
#include <vector>

#include "int8tile/quantize.hpp"
#include "kernels/kernel.hpp"

namespace int8tile {

/// `rows` quantised rows of a larger matrix, starting at row `first`.
struct Strip {
  const int8_t* q = nullptr;  // [rows rounded up to 16, stride], zero where padded
  int64_t stride = 0;         // cols rounded up to 16
  int64_t first = 0;
  int64_t rows = 0;
  int64_t cols = 0;
};

/// Whole strips, so that no two share a panel or a group. Strips that are only packed as rows of A
/// may be smaller: any multiple of a panel's rows.
inline constexpr int64_t kRowsPerStripA = 48;  // whole A panels (6) and whole depth turns (16)
inline constexpr int64_t kRowsPerStripB = 64;  // whole B panels of any kernel, whole turns

void pack_a(const Kernel& kernel, const Strip& strip, int64_t depth, int8_t* panels);
void pack_b(const Kernel& kernel, const Strip& strip, int64_t depth, uint8_t* panels);
/// Columns of the strip as panel rows; `depth` is the padded number of rows of the whole matrix.
void pack_transposed(const Kernel& kernel, const Strip& strip, int64_t depth, int8_t* a_panels,
                     uint8_t* b_panels);

/// B panels of the outlier columns `index` of a packed weight: [ceil(n/nr)][count4/4][nr][4].
void gather_outlier_weights(const CpuFacts& cpu, const uint8_t* b, int64_t n, int64_t depth,
                            const int32_t* index, int64_t count, uint8_t* out);

/// Row `index` of the B panels `b`.
struct PanelRow {
  const uint8_t* b;
  int64_t index;
};

/// B panels of some rows of others, at least one: [ceil(rows/nr)][depth/4][nr][4].
void gather_panel_rows(const CpuFacts& cpu, const std::vector<PanelRow>& rows, int64_t depth,
                       uint8_t* out);

}  // namespace int8tile
