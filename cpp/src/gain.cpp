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

// Integers of a column of w, for each thread.
struct ColumnScratch {
  ColumnScratch(Arena& arena, int threads, int64_t n)
      : stride(round_up(n, kAlignment)), q(arena.take<int8_t>(threads * stride)) {}
  int64_t stride;
  int8_t* q;
};

// Rows by which the gains are bounded.
struct Rows {
  Rows(const uint32_t* absmax, int64_t n)
      : largest(absmax, absmax + n), mask(static_cast<std::size_t>(n), kAbsMask) {
    for (std::size_t i = 0; i < largest.size(); ++i) {
      if (largest[i] >= std::bit_cast<uint32_t>(kZeroAbsmax) && largest[i] < kInf) continue;
      largest[i] = kAbsMask;
      mask[i] = 0;
    }
  }
  std::vector<uint32_t> largest;  // bits of the absmax; more than any where the row does not count
  std::vector<uint32_t> mask;     // of |w|; zero where the row does not count
};

// floor(log2(a / b)) of positive floats is (a - b) >> 23 on their bits: the difference of the
// exponents, one less where the mantissa of b is the larger. A b of zero or below 2^-126 gives more
// than kMaxGainExponent where a is at least kZeroAbsmax, as it should.
int32_t weight_room(const Rows& rows, const float* column, int64_t n) {
  int32_t least = kMaxGainExponent << kMantissaBits;
  uint32_t any = 0;
  for (int64_t i = 0; i < n; ++i) {
    const auto row = static_cast<std::size_t>(i);
    const uint32_t bits = std::bit_cast<uint32_t>(column[i]) & rows.mask[row];
    any |= bits;
    // Negative only where the caller's absmax is not that of this weight.
    least = std::min(least, std::max(0, static_cast<int32_t>(rows.largest[row] - bits)));
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

bool weight_gains(const ColumnValues& columns, int64_t n, const uint32_t* absmax,
                  const CpuFacts& cpu, int32_t* exponent) {
  const Rows rows(absmax, n);
  parallel_for(cpu.threads, columns.count, [&](int64_t t, int) {
    if (exponent[t] == 0) return;
    exponent[t] = std::min(exponent[t], weight_room(rows, columns.values + t * columns.stride, n));
  });
  return any_above_zero(exponent, columns.count);
}

void load_columns(const MatrixView& weight, const CpuFacts& cpu, const ColumnValues& columns) {
  const MatrixView transposed{weight.data, weight.dtype,      weight.cols,
                              weight.rows, weight.col_stride, weight.row_stride};
  parallel_for(cpu.threads, columns.count, [&](int64_t t, int) {
    float* to = columns.values + t * columns.stride;
    const float* column = load_row(*cpu.kernel, transposed, columns.index[t], to);
    if (column != to) std::copy_n(column, weight.rows, to);
  });
}

void copy_panels(const uint8_t* from, const MatrixView& weight, const CpuFacts& cpu, uint8_t* to) {
  const int64_t panel = cpu.kernel->nr * round_up(weight.cols, kDepthAlign);
  parallel_for(cpu.threads, ceil_div(weight.rows, cpu.kernel->nr), [&](int64_t p, int) {
    std::memcpy(to + p * panel, from + p * panel, static_cast<std::size_t>(panel));
  });
}

void gain_weight(const ColumnValues& columns, const MatrixView& weight, const float* scale,
                 const int32_t* exponent, const CpuFacts& cpu, uint8_t* panels) {
  const int64_t n = weight.rows, nr = cpu.kernel->nr, depth = round_up(weight.cols, kDepthAlign);
  std::vector<float> inv(static_cast<std::size_t>(n));
  for (int64_t i = 0; i < n; ++i)
    inv[static_cast<std::size_t>(i)] = scale[i] > 0.0f ? 1.0f / scale[i] : 0.0f;
  const Workspace<ColumnScratch> scratch(share_count(cpu.threads, columns.count), n);
  const ColumnScratch& at = scratch.at;
  parallel_pass(cpu.threads, columns.count, /*backwards=*/false, [&](int64_t t, int thread) {
    if (exponent[t] == 0) return;
    int8_t* q = at.q + thread * at.stride;
    const auto gain = static_cast<float>(1 << exponent[t]);
    cpu.kernel->quantize_columns(columns.values + t * columns.stride, gain, inv.data(), n, q);
    const int64_t j = columns.index[t];
    uint8_t* lane = panels + j / kGroup * nr * kGroup + j % kGroup;
    for (int64_t i = 0; i < n; i += nr, lane += nr * depth)
      for (int64_t c = 0; c < std::min(nr, n - i); ++c)
        lane[c * kGroup] = static_cast<uint8_t>(q[i + c] + cpu.kernel->b_offset);
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
