// The portable kernel: plain C++ that runs on any CPU and is the yardstick of the others.
#include "rows.hpp"

namespace int8tile {
namespace {

constexpr int kColumns = 16;

void multiply(const int8_t* a, const int8_t* b, int64_t groups, int rows,
              int32_t (*acc)[kColumns]) {
  for (int64_t g = 0; g < groups; ++g, a += kGroup * rows, b += kGroup * kColumns)
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < kColumns; ++c)
        for (int i = 0; i < kGroup; ++i) acc[r][c] += a[r * kGroup + i] * b[c * kGroup + i];
}

void tile(const Tile& t) {
  int32_t acc[kTileRows][kColumns];
  for (int r = 0; r < t.rows; ++r)
    for (int c = 0; c < kColumns; ++c) acc[r][c] = t.load ? t.acc[r * kColumns + c] : 0;
  if (!t.load) {
    multiply(t.a_high, reinterpret_cast<const int8_t*>(t.b_high), t.high_groups, t.rows, acc);
    for (int r = 0; r < t.rows; ++r)
      for (int c = 0; c < kColumns; ++c) acc[r][c] *= 1 << kLimbShift;
  }
  multiply(t.a, reinterpret_cast<const int8_t*>(t.b), t.groups, t.rows, acc);
  for (int r = 0; r < t.rows; ++r) {
    if (t.out != nullptr)
      rows_dequantize(
          {acc[r], t.cols, t.row_scale[r], t.col_scale, t.bias, t.out + r * t.out_stride, false});
    else
      for (int c = 0; c < kColumns; ++c) t.acc[r * kColumns + c] = acc[r][c];
  }
}

}  // namespace

constinit const Kernel kPortableKernel = generic_kernel("portable", kColumns, 0, tile);

}  // namespace int8tile
