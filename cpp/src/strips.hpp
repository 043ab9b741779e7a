// What both directions of quantisation share: the threads' memory and the stochastic counter.
#pragma once

#include <algorithm>

#include "int8tile/memory.hpp"
#include "int8tile/quantize.hpp"
#include "kernels/kernel.hpp"

namespace int8tile {

static_assert(kLimbShift == kLimbBits);

// Runs `body(begin, count, key)` over a row whose first element has the 64-bit index `start`;
// a run ends where the low half of the index wraps.
template <class Body>
void for_each_run(const QuantizeSpec& spec, uint64_t start, int64_t cols, const Body& body) {
  const auto seed_low = static_cast<uint32_t>(spec.seed);
  const auto seed_high = static_cast<uint32_t>(spec.seed >> 32);
  const uint32_t base = mix(seed_low ^ seed_high ^ spec.gemm_id);
  for (int64_t begin = 0; begin < cols;) {
    const uint64_t index = start + static_cast<uint64_t>(begin);
    const auto low = static_cast<uint32_t>(index);
    const int64_t room = (int64_t{1} << 32) - static_cast<int64_t>(low);
    const int64_t count = std::min(cols - begin, room);
    body(begin, count, RoundingKey{mix(base ^ static_cast<uint32_t>(index >> 32)), low});
    begin += count;
  }
}

// Memory of each thread while it quantises strips. Rows stand apart: the row loops fetch what
// follows the row they read, which must not be another thread's.
struct StripScratch {
  StripScratch(Arena& arena, int threads, int64_t strip_rows, int64_t cols, int64_t outliers)
      : stride(round_up(cols, kDepthAlign)),
        high_stride(round_up(outliers, kDepthAlign)),
        row_stride(2 * round_up(cols, 16)),
        strip_bytes(round_up(strip_rows, kDepthAlign) * stride),
        high_bytes(round_up(strip_rows, kDepthAlign) * high_stride),
        q(arena.take<int8_t>(threads * strip_bytes)),
        high(arena.take<int8_t>(threads * high_bytes)),
        low(arena.take<int8_t>(threads * high_bytes)),
        row(arena.take<float>(threads * row_stride)),
        gathered(arena.take<float>(threads * high_stride)) {}
  int64_t stride, high_stride, row_stride, strip_bytes, high_bytes;
  int8_t *q, *high, *low;
  float *row, *gathered;
};

}  // namespace int8tile
