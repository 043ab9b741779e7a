// Quantisation with a scale per column, written transposed.
#include <algorithm>
#include <cstring>
#include <vector>

#include "int8tile/columns.hpp"
#include "int8tile/parallel.hpp"
#include "int8tile/quantize.hpp"
#include "pack.hpp"
#include "rows.hpp"
#include "strips.hpp"

namespace int8tile {
namespace {

// Scales of all columns; inv // [cols]
void column_scales(const QuantizeSpec& spec, const uint32_t* absmax, const TokenTargets* tokens,
                   int64_t cols, float* scale, float* inv) {
  const bool tensor = spec.granularity == Granularity::kTensor;
  uint32_t regular = 0, outlier = 0;  // of the tensor, or of a column
  const auto merge = [&](int64_t j) {
    regular = std::max(regular, absmax[j]);
    if (tokens) outlier = std::max(outlier, tokens->absmax[j]);
  };
  for (int64_t j = 0; tensor && j < cols; ++j) merge(j);
  for (int64_t j = 0; j < cols; ++j) {
    if (!tensor) {
      regular = outlier = 0;
      merge(j);
    }
    const Scale s = make_scale(regular, outlier, spec.scale, kMaxOutlierBits);
    scale[j] = s.scale;
    inv[j] = s.inv;
  }
}

std::size_t slice_of(const std::vector<Slice>& slices, int64_t row) {
  std::size_t s = 0;
  while (s + 1 < slices.size() && row >= slices[s].end) ++s;
  return s;
}

// Limbs of a row with a scale per column; `buffer` // [cols]
void quantize_token(const Kernel& kernel, const float* row, float factor, const float* inv,
                    int64_t cols, float* buffer, int8_t* high, int8_t* low) {
  for (int64_t j = 0; j < cols; ++j) buffer[j] = inv[j] == 0.0f ? 0.0f : row[j] * factor * inv[j];
  kernel.quantize_outliers(buffer, cols, 1.0f, 0, kOutlierMax, high, low);
}

}  // namespace

void quantize_columns(const MatrixView& x, const float* fold, const uint32_t* absmax,
                      const QuantizeSpec& spec, const CpuFacts& cpu, const QuantizeTargets& targets,
                      float* scale, const TokenTargets* tokens) {
  const Kernel& kernel = *cpu.kernel;
  std::vector<float> inv(static_cast<std::size_t>(x.cols));
  column_scales(spec, absmax, tokens, x.cols, scale, inv.data());
  const std::vector<Slice> slices =
      targets.slices ? *targets.slices : std::vector<Slice>{{0, x.rows}};
  const int64_t slice_sums =
      targets.compensation ? static_cast<int64_t>(slices.size()) * x.cols : 0;
  const int64_t sums_per_thread = slice_sums + (targets.compensation && tokens ? x.cols : 0);
  const int64_t strips = ceil_div(x.rows, kRowsPerStripB);
  const int shares = share_count(cpu.threads, strips);
  std::vector<int32_t> sums(static_cast<std::size_t>(shares * sums_per_thread), 0);
  const Workspace<StripScratch> scratch(shares, kRowsPerStripB, x.cols, int64_t{0});
  const StripScratch& at = scratch.at;
  // Backwards: the pass that found the absmax went forwards.
  parallel_pass(cpu.threads, strips, /*backwards=*/true, [&](int64_t s, int thread) {
    const int64_t first = s * kRowsPerStripB;
    const int64_t rows = std::min(kRowsPerStripB, x.rows - first);
    int8_t* q = at.q + thread * at.strip_bytes;
    int32_t* sum = sums.data() + thread * sums_per_thread +
                   static_cast<int64_t>(slice_of(slices, first)) * x.cols;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = first + r;
      int8_t* out = q + r * at.stride;
      const float* row = load_row(kernel, x, i, at.row + thread * at.row_stride);
      const float factor = fold ? fold[i] : 1.0f;
      if (tokens && tokens->slot[i] >= 0) {
        int8_t* high = tokens->high + tokens->slot[i] * tokens->stride;
        quantize_token(kernel, row, factor, inv.data(), x.cols,
                       at.row + thread * at.row_stride + at.row_stride / 2, high, out);
        if (targets.compensation)
          kernel.column_sum_int8(high, x.cols, sums.data() + thread * sums_per_thread + slice_sums);
      } else if (spec.rounding == Rounding::kNearest)
        kernel.quantize_columns(row, factor, inv.data(), x.cols, out);
      else
        for_each_run(spec, static_cast<uint64_t>(i) * static_cast<uint64_t>(x.cols), x.cols,
                     [&](int64_t begin, int64_t count, RoundingKey key) {
                       kernel.quantize_columns_stochastic(row + begin, factor, inv.data() + begin,
                                                          count, key, out + begin);
                     });
      if (targets.compensation) kernel.column_sum_int8(out, x.cols, sum);
      if (targets.transposed)
        for (int64_t j = 0; j < x.cols; ++j) targets.transposed[j * x.rows + i] = out[j];
    }
    std::memset(q + rows * at.stride, 0,
                static_cast<std::size_t>((round_up(rows, kDepthAlign) - rows) * at.stride));
    if (targets.a_transposed || targets.b_transposed)
      pack_transposed(kernel, {q, at.stride, first, rows, x.cols}, round_up(x.rows, kDepthAlign),
                      targets.a_transposed, targets.b_transposed);
  });
  if (!targets.compensation) return;
  for (int64_t j = 0; j < slice_sums; ++j) {
    int32_t sum = 0;
    for (int t = 0; t < shares; ++t) {
      const int32_t* here = sums.data() + t * sums_per_thread;
      sum += here[j];
      if (tokens && j < x.cols) sum += 128 * here[slice_sums + j];  // in the first slice
    }
    const uint32_t product = static_cast<uint32_t>(-kernel.b_offset) * static_cast<uint32_t>(sum);
    targets.compensation[j] = static_cast<int32_t>(product);
  }
}

void quantize_columns(const MatrixView& x, const float* fold, const QuantizeSpec& spec,
                      const CpuFacts& cpu, const QuantizeTargets& targets, float* scale) {
  std::vector<uint32_t> absmax(static_cast<std::size_t>(x.cols));
  column_stats(x, {fold, /*finite_only=*/false, absmax.data(), nullptr}, cpu);
  quantize_columns(x, fold, absmax.data(), spec, cpu, targets, scale);
}

}  // namespace int8tile
