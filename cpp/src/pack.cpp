// Strips to panels, and gathers of outlier columns out of packed operands.
#include "pack.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

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

namespace {

// One lane of each of kGroup groups of panels as one group, by words so that it vectorises.
void gather_lanes(const uint8_t* const* group, const int64_t* lane, int64_t nr,
                  uint8_t* __restrict out) {
  static_assert(kGroup == 4 && std::endian::native == std::endian::little);
  const uint8_t *g0 = group[0], *g1 = group[1], *g2 = group[2], *g3 = group[3];
  const auto s0 = 8 * lane[0], s1 = 8 * lane[1], s2 = 8 * lane[2], s3 = 8 * lane[3];
  for (int64_t c = 0; c < nr * kGroup; c += kGroup) {
    uint32_t w0, w1, w2, w3;
    std::memcpy(&w0, g0 + c, kGroup);
    std::memcpy(&w1, g1 + c, kGroup);
    std::memcpy(&w2, g2 + c, kGroup);
    std::memcpy(&w3, g3 + c, kGroup);
    const uint32_t word = (w0 >> s0 & 0xff) | (w1 >> s1 & 0xff) << 8 | (w2 >> s2 & 0xff) << 16 |
                          (w3 >> s3 & 0xff) << 24;
    std::memcpy(out + c, &word, kGroup);
  }
}

}  // namespace

void gather_outlier_weights(const CpuFacts& cpu, const uint8_t* b, int64_t n, int64_t depth,
                            const int32_t* index, int64_t count, uint8_t* out) {
  const int64_t nr = cpu.kernel->nr;
  const int64_t padded = round_up(count, kGroup);
  const std::vector<uint8_t> padding(static_cast<std::size_t>(nr * kGroup),
                                     static_cast<uint8_t>(cpu.kernel->b_offset));
  parallel_for(cpu.threads, ceil_div(n, nr), [&](int64_t panel, int) {
    const uint8_t* from = b + panel * nr * depth;
    uint8_t* to = out + panel * nr * padded;
    for (int64_t t = 0; t < padded; t += kGroup, to += nr * kGroup) {
      const uint8_t* group[kGroup];
      int64_t lane[kGroup];
      for (int64_t i = 0; i < kGroup; ++i) {
        const bool none = t + i >= count;
        group[i] = none ? padding.data() : from + index[t + i] / kGroup * nr * kGroup;
        lane[i] = none ? 0 : index[t + i] % kGroup;
      }
      gather_lanes(group, lane, nr, to);
    }
  });
}

void gather_panel_rows(const CpuFacts& cpu, const std::vector<PanelRow>& rows, int64_t depth,
                       uint8_t* out) {
  constexpr int64_t kGroupsAtOnce = 128;
  const int64_t nr = cpu.kernel->nr, groups = depth / kGroup;
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t parts = ceil_div(groups, kGroupsAtOnce);
  const std::vector<uint8_t> padding(static_cast<std::size_t>(kGroup),
                                     static_cast<uint8_t>(cpu.kernel->b_offset));
  parallel_for(cpu.threads, ceil_div(count, nr) * parts, [&](int64_t task, int) {
    const int64_t panel = task / parts, begin = task % parts * kGroupsAtOnce;
    const int64_t end = std::min(groups, begin + kGroupsAtOnce);
    for (int64_t r = 0; r < nr; ++r) {
      const int64_t t = panel * nr + r;
      const bool none = t >= count;
      const PanelRow& row = rows[static_cast<std::size_t>(none ? 0 : t)];
      const uint8_t* from =
          none ? padding.data() : row.b + (row.index / nr * groups * nr + row.index % nr) * kGroup;
      const int64_t step = none ? 0 : nr * kGroup;
      uint8_t* to = out + (panel * groups * nr + r) * kGroup;
      for (int64_t g = begin; g < end; ++g)
        std::memcpy(to + g * nr * kGroup, from + g * step, kGroup);
    }
  });
}

}  // namespace int8tile
