// Strips to panels, and gathers of outlier columns out of packed operands.
#include "pack.hpp"

#include <algorithm>
#include <cstring>

#include "int8tile/memory.hpp"
#include "int8tile/parallel.hpp"

namespace int8tile {

void pack_a(const Kernel& kernel, const Strip& strip, int64_t depth, int8_t* panels) {
  for (int64_t r = 0; r < strip.rows; r += kTileRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kTileRows, strip.rows - r));
    kernel.pack_rows(strip.q + r * strip.stride, strip.stride, rows, rows, depth / kGroup, 0,
                     reinterpret_cast<uint8_t*>(panels) + (strip.first + r) * depth);
  }
}

void pack_b(const Kernel& kernel, const Strip& strip, int64_t depth, uint8_t* panels) {
  for (int64_t r = 0; r < strip.rows; r += kernel.nr) {
    const int rows = static_cast<int>(std::min<int64_t>(kernel.nr, strip.rows - r));
    kernel.pack_rows(strip.q + r * strip.stride, strip.stride, rows, kernel.nr, depth / kGroup,
                     kernel.b_offset, panels + (strip.first + r) * depth);
  }
}

namespace {

// Columns that go to their panels together, so that lines fill before they leave L1: whole panels
// of A and of every kernel's B.
constexpr int64_t kColumnsPerBlock = 192;
static_assert(kColumnsPerBlock % kTileRows == 0 && kColumnsPerBlock % kMaxPanelColumns == 0);

// One group of four rows, [cols][4], into panels of `width` columns each, or of those that remain.
// Inlined for widths known when compiling, whose copies then are plain moves.
inline void scatter_group(int64_t width, const uint8_t* group, int64_t cols, bool full_width,
                          int64_t depth, int64_t position, uint8_t fill, uint8_t* panels) {
  int64_t c = 0;
  for (; c + width <= cols; c += width)
    std::memcpy(panels + c * depth + position * width, group + c * kGroup,
                static_cast<std::size_t>(width * kGroup));
  if (c == cols) return;
  const int64_t here = cols - c;
  uint8_t* out = panels + c * depth + position * (full_width ? width : here);
  std::memcpy(out, group + c * kGroup, static_cast<std::size_t>(here * kGroup));
  if (full_width)
    std::memset(out + here * kGroup, fill, static_cast<std::size_t>((width - here) * kGroup));
}

void scatter_b(const Kernel& kernel, const uint8_t* group, int64_t cols, int64_t depth,
               int64_t position, uint8_t* panels) {
  const auto fill = static_cast<uint8_t>(kernel.b_offset);
  switch (kernel.nr) {
    case 8:
      return scatter_group(8, group, cols, true, depth, position, fill, panels);
    case 64:
      return scatter_group(64, group, cols, true, depth, position, fill, panels);
    default:
      return scatter_group(kernel.nr, group, cols, true, depth, position, fill, panels);
  }
}

}  // namespace

void pack_transposed(const Kernel& kernel, const Strip& strip, int64_t depth, int8_t* a_panels,
                     uint8_t* b_panels) {
  const int64_t end = round_up(strip.rows, kDepthAlign);
  alignas(kAlignment) uint8_t group[kColumnsPerBlock * kGroup];
  for (int64_t c = 0; c < strip.cols; c += kColumnsPerBlock) {
    const int64_t cols = std::min(kColumnsPerBlock, strip.cols - c);
    for (int64_t r = 0; r < end; r += kGroup) {
      const int8_t* rows[kGroup];
      for (int i = 0; i < kGroup; ++i) rows[i] = strip.q + (r + i) * strip.stride + c;
      const int64_t position = strip.first + r;
      if (a_panels) {
        kernel.interleave4(rows, cols, 0, group);
        scatter_group(kTileRows, group, cols, false, depth, position, 0,
                      reinterpret_cast<uint8_t*>(a_panels) + c * depth);
      }
      if (b_panels) {
        kernel.interleave4(rows, cols, kernel.b_offset, group);
        scatter_b(kernel, group, cols, depth, position, b_panels + c * depth);
      }
    }
  }
}

void gather_outlier_weights(const CpuFacts& cpu, const uint8_t* b, int64_t n, int64_t depth,
                            const int32_t* index, int64_t count, uint8_t* out) {
  const int64_t nr = cpu.kernel->nr;
  const int64_t padded = round_up(count, kGroup);
  const auto fill = static_cast<uint8_t>(cpu.kernel->b_offset);
  parallel_for(cpu.threads, ceil_div(n, nr), [&](int64_t panel, int) {
    const uint8_t* from = b + panel * nr * depth;
    uint8_t* to = out + panel * nr * padded;
    for (int64_t t = 0; t < padded; ++t) {
      uint8_t* lane = to + t / kGroup * nr * kGroup + t % kGroup;
      if (t >= count) {
        for (int64_t c = 0; c < nr; ++c) lane[c * kGroup] = fill;
        continue;
      }
      const uint8_t* column = from + index[t] / kGroup * nr * kGroup + index[t] % kGroup;
      for (int64_t c = 0; c < nr; ++c) lane[c * kGroup] = column[c * kGroup];
    }
  });
}

void gather_panel_rows(const CpuFacts& cpu, const uint8_t* b, int64_t depth, const int32_t* index,
                       int64_t count, uint8_t* out) {
  const int64_t nr = cpu.kernel->nr;
  const int64_t groups = depth / kGroup;
  const auto fill = static_cast<uint8_t>(cpu.kernel->b_offset);
  parallel_for(cpu.threads, ceil_div(count, nr), [&](int64_t panel, int) {
    for (int64_t r = 0; r < nr; ++r) {
      uint8_t* to = out + (panel * groups * nr + r) * kGroup;
      const int64_t t = panel * nr + r;
      const uint8_t* from = nullptr;
      if (t < count) from = b + (index[t] / nr * groups * nr + index[t] % nr) * kGroup;
      for (int64_t g = 0; g < groups; ++g, to += nr * kGroup) {
        if (from)
          std::memcpy(to, from + g * nr * kGroup, kGroup);
        else
          std::memset(to, fill, kGroup);
      }
    }
  });
}

}  // namespace int8tile
