// Exponents of gains by subtracting bits of floats, and the columns of w quantised again.
#include "gain.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "int8tile/memory.hpp"
#include "int8tile/parallel.hpp"
#include "pack.hpp"
#include "rows.hpp"

namespace int8tile {
namespace {

constexpr int kMantissaBits = 23;
constexpr uint32_t kAbsMask = 0x7fffffff;
constexpr uint32_t kInf = 0x7f800000;

// A column of w and its integers, for each thread.
struct ColumnScratch {
  ColumnScratch(Arena& arena, int threads, int64_t n)
      : stride(round_up(n, kAlignment)),
        column(arena.take<float>(threads * stride)),
        q(arena.take<int8_t>(threads * stride)) {}
  int64_t stride;
  float* column;
  int8_t* q;
};

MatrixView transpose(const MatrixView& w) {
  return {w.data, w.dtype, w.cols, w.rows, w.col_stride, w.row_stride};
}

// floor(log2(a / b)) of positive floats is (a - b) >> 23 on their bits: the difference of the
// exponents, one less where the mantissa of b is the larger. A b of zero or below 2^-126 gives more
// than kMaxGainExponent where a is at least kZeroAbsmax, as it should.
int32_t weight_room(const uint32_t* absmax, const float* column, int64_t n) {
  int32_t least = kMaxGainExponent << kMantissaBits;
  uint32_t any = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(column[i]) & kAbsMask;
    const bool counts = absmax[i] >= std::bit_cast<uint32_t>(kZeroAbsmax) && absmax[i] < kInf;
    if (!counts) continue;
    any |= bits;
    // Negative only where the caller's absmax is not that of this weight.
    least = std::min(least, std::max(0, static_cast<int32_t>(absmax[i] - bits)));
  }
  return any == 0 ? 0 : least >> kMantissaBits;
}

bool any_above_zero(const int32_t* exponent, int64_t count) {
  return std::any_of(exponent, exponent + count, [](int32_t e) { return e > 0; });
}

}  // namespace

bool input_gains(const uint32_t* column_absmax, int64_t count, int64_t capacity, float threshold,
                 int32_t* exponent) {
  const uint32_t least = std::bit_cast<uint32_t>(threshold);
  std::fill_n(exponent, capacity, 0);
  for (int64_t t = 0; t < count; ++t)
    exponent[t] = std::min(kMaxGainExponent,
                           static_cast<int32_t>((column_absmax[t] - least) >> kMantissaBits));
  return any_above_zero(exponent, count);
}

bool weight_gains(const MatrixView& weight, const uint32_t* absmax, const int32_t* index,
                  int64_t count, const CpuFacts& cpu, int32_t* exponent) {
  const MatrixView columns = transpose(weight);
  const Workspace<ColumnScratch> scratch(share_count(cpu.threads, count), weight.rows);
  const ColumnScratch& at = scratch.at;
  parallel_for(cpu.threads, count, [&](int64_t t, int thread) {
    if (exponent[t] == 0) return;
    const float* column = load_row(*cpu.kernel, columns, index[t], at.column + thread * at.stride);
    exponent[t] = std::min(exponent[t], weight_room(absmax, column, weight.rows));
  });
  return any_above_zero(exponent, count);
}

void copy_panels(const uint8_t* from, const MatrixView& weight, const CpuFacts& cpu, uint8_t* to) {
  const int64_t panel = cpu.kernel->nr * round_up(weight.cols, kDepthAlign);
  parallel_for(cpu.threads, ceil_div(weight.rows, cpu.kernel->nr), [&](int64_t p, int) {
    std::memcpy(to + p * panel, from + p * panel, static_cast<std::size_t>(panel));
  });
}

void gain_weight(const MatrixView& weight, const float* scale, const int32_t* index, int64_t count,
                 const int32_t* exponent, const CpuFacts& cpu, uint8_t* panels) {
  const int64_t n = weight.rows, nr = cpu.kernel->nr, depth = round_up(weight.cols, kDepthAlign);
  std::vector<float> inv(static_cast<std::size_t>(n));
  for (int64_t i = 0; i < n; ++i)
    inv[static_cast<std::size_t>(i)] = scale[i] > 0.0f ? 1.0f / scale[i] : 0.0f;
  const MatrixView columns = transpose(weight);
  const Workspace<ColumnScratch> scratch(share_count(cpu.threads, count), n);
  const ColumnScratch& at = scratch.at;
  parallel_for(cpu.threads, count, [&](int64_t t, int thread) {
    if (exponent[t] == 0) return;
    int8_t* q = at.q + thread * at.stride;
    const int64_t j = index[t];
    const float* column = load_row(*cpu.kernel, columns, j, at.column + thread * at.stride);
    const auto gain = static_cast<float>(1 << exponent[t]);
    cpu.kernel->quantize_columns(column, gain, inv.data(), n, q);
    for (int64_t i = 0; i < n; ++i)
      panels[i / nr * nr * depth + (j / kGroup * nr + i % nr) * kGroup + j % kGroup] =
          static_cast<uint8_t>(q[i] + cpu.kernel->b_offset);
  });
}

void weight_absmax(const MatrixView& weight, Granularity granularity, const CpuFacts& cpu,
                   uint32_t* absmax) {
  const int64_t strips = ceil_div(weight.rows, kRowsPerStripB);
  const int64_t stride = round_up(weight.cols, kAlignment);
  std::vector<float> buffers(static_cast<std::size_t>(share_count(cpu.threads, strips) * stride));
  parallel_pass(cpu.threads, strips, /*backwards=*/false, [&](int64_t strip, int thread) {
    const int64_t end = std::min(weight.rows, (strip + 1) * kRowsPerStripB);
    for (int64_t i = strip * kRowsPerStripB; i < end; ++i) {
      const float* row = load_row(*cpu.kernel, weight, i, buffers.data() + thread * stride);
      absmax[i] = cpu.kernel->absmax_bits(row, nullptr, weight.cols);
    }
  });
  if (granularity == Granularity::kTensor && weight.rows > 0)
    std::fill_n(absmax, weight.rows, *std::max_element(absmax, absmax + weight.rows));
}

}  // namespace int8tile
