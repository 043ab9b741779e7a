// Scales, and quantisation with a scale per row. Start reading at quantize_rows.
#include "int8tile/quantize.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "int8tile/memory.hpp"
#include "int8tile/parallel.hpp"
#include "pack.hpp"
#include "rows.hpp"
#include "strips.hpp"

namespace int8tile {

Scale make_scale(uint32_t regular, uint32_t outlier, ScaleKind kind, int outlier_bits) {
  constexpr uint32_t kInf = 0x7f800000;
  const uint32_t largest = std::max(regular, outlier);
  if (largest >= kInf) return {std::numeric_limits<float>::quiet_NaN(), 0.0f, 0, largest};
  if (std::bit_cast<float>(largest) < kZeroAbsmax) return {0.0f, 0.0f, 0, largest};
  const float outlier_absmax = std::bit_cast<float>(outlier);
  float scale = std::max(std::bit_cast<float>(regular) / static_cast<float>(kInt8Max),
                         outlier_absmax / static_cast<float>(kOutlierMax));
  if (kind == ScaleKind::kPow2)
    scale = std::bit_cast<float>((std::bit_cast<uint32_t>(scale) + 0x7fffff) & 0xff800000);
  const float inv = 1.0f / scale;
  const auto top = static_cast<uint32_t>(std::nearbyint(outlier_absmax * inv));
  const int shift = std::max(0, static_cast<int>(std::bit_width(top)) - (outlier_bits - 1));
  return {scale, inv, shift, largest};
}

namespace {

// The row itself, or times its fold in `buffer`.
const float* folded(const float* row, int64_t cols, const float* fold, int64_t i, float* buffer) {
  if (!fold) return row;
  for (int64_t j = 0; j < cols; ++j) buffer[j] = row[j] * fold[i];
  return buffer;
}

// Bits of the absmax of a row's two parts.
struct RowMaxima {
  uint32_t regular = 0;
  uint32_t outlier = 0;
};

// gathered // [count] takes the row's outliers, divided by their gains
void gather_outliers(const Kernel& kernel, const float* row, const OutlierTargets& outliers,
                     float* gathered) {
  kernel.gather(row, outliers.index, outliers.count, gathered);
  if (!outliers.inv_gain) return;
  for (int64_t t = 0; t < outliers.count; ++t) gathered[t] *= outliers.inv_gain[t];
}

RowMaxima row_maxima(const Kernel& kernel, const float* row, int64_t cols,
                     const OutlierTargets* outliers, float* gathered) {
  if (!outliers || outliers->count == 0) return {kernel.absmax_bits(row, nullptr, cols), 0};
  const uint32_t regular = kernel.absmax_bits(row, outliers->mask, cols);  // brings in the row
  gather_outliers(kernel, row, *outliers, gathered);
  return {regular, kernel.absmax_bits(gathered, nullptr, outliers->count)};
}

Scale scale_of(const RowMaxima& maxima, const QuantizeSpec& spec, const OutlierTargets* outliers) {
  return make_scale(maxima.regular, maxima.outlier, spec.scale,
                    outliers ? outliers->outlier_bits : kMaxOutlierBits);
}

Scale tensor_scale_of_rows(const MatrixView& x, const float* fold, const QuantizeSpec& spec,
                           const CpuFacts& cpu, const OutlierTargets* outliers, int64_t strip_rows,
                           const StripScratch& scratch) {
  const int64_t strips = ceil_div(x.rows, strip_rows);
  std::vector<RowMaxima> largest(static_cast<std::size_t>(share_count(cpu.threads, strips)));
  parallel_pass(cpu.threads, strips, /*backwards=*/false, [&](int64_t strip, int thread) {
    RowMaxima& all = largest[static_cast<std::size_t>(thread)];
    float* buffer = scratch.row + thread * scratch.row_stride;
    float* gathered = scratch.gathered + thread * scratch.high_stride;
    const int64_t end = std::min(x.rows, (strip + 1) * strip_rows);
    for (int64_t i = strip * strip_rows; i < end; ++i) {
      const float* row = folded(load_row(*cpu.kernel, x, i, buffer), x.cols, fold, i, buffer);
      const RowMaxima each = row_maxima(*cpu.kernel, row, x.cols, outliers, gathered);
      all = {std::max(all.regular, each.regular), std::max(all.outlier, each.outlier)};
    }
  });
  RowMaxima all;
  for (const RowMaxima& each : largest)
    all = {std::max(all.regular, each.regular), std::max(all.outlier, each.outlier)};
  return scale_of(all, spec, outliers);
}

// Everything one strip of rows needs while it passes through.
struct RowPass {
  const MatrixView& x;
  const float* fold;
  const QuantizeSpec& spec;
  const Kernel& kernel;
  const QuantizeTargets& targets;
  const OutlierTargets* outliers;
  const Scale* tensor;  // null: a scale per row
  float* scale;
  const StripScratch& scratch;
  std::vector<Slice> slices;
  const ColumnPass* columns;

  int64_t outlier_count() const { return outliers ? outliers->count : 0; }

  void quantize(const float* row, int64_t i, float inv, int8_t* q) const {
    if (spec.rounding == Rounding::kNearest) return kernel.quantize_row(row, x.cols, inv, q);
    const auto start = static_cast<uint64_t>(i) * static_cast<uint64_t>(x.cols);
    for_each_run(spec, start, x.cols, [&](int64_t begin, int64_t count, RoundingKey key) {
      kernel.quantize_row_stochastic(row + begin, count, inv, key, q + begin);
    });
  }

  void scatter_low(const int8_t* low, int8_t* q) const {
    for (int64_t t = 0; t < outliers->count; ++t) q[outliers->index[t]] = low[t];
  }

  void compensate(int64_t i, const int8_t* q, const int8_t* high, const int8_t* low) const {
    if (!targets.compensation) return;
    for (std::size_t s = 0; s < slices.size(); ++s) {
      int32_t sum = kernel.row_sum(q + slices[s].begin, slices[s].end - slices[s].begin);
      if (s == 0 && outlier_count() > 0) {
        sum += 128 * kernel.row_sum(high, outliers->count);
        if (!outliers->low_in_place) sum += kernel.row_sum(low, outliers->count);
      }
      // Modulo 2^32: the final accumulator fits even where this product does not.
      const uint32_t product = static_cast<uint32_t>(-kernel.b_offset) * static_cast<uint32_t>(sum);
      targets.compensation[static_cast<int64_t>(s) * x.rows + i] = static_cast<int32_t>(product);
    }
  }

  void copy_columns(int64_t i, const float* row) const {
    if (!targets.columns) return;
    const ColumnValues& to = *targets.columns;
    for (int64_t t = 0; t < to.count; ++t) to.values[t * to.stride + i] = row[to.index[t]];
  }

  // gathered // [count] takes the row's outliers
  void one_row(int64_t i, const float* row, int8_t* q, int8_t* high, int8_t* low,
               float* gathered) const {
    const int64_t count = outlier_count();
    Scale s;
    if (!tensor) {
      s = scale_of(row_maxima(kernel, row, x.cols, outliers, gathered), spec, outliers);
    } else {
      s = *tensor;
      if (count > 0) gather_outliers(kernel, row, *outliers, gathered);
    }
    scale[i] = s.scale;
    if (targets.absmax) targets.absmax[i] = s.absmax;
    std::memset(q + x.cols, 0, static_cast<std::size_t>(scratch.stride - x.cols));
    if (s.inv == 0.0f) {
      std::memset(q, 0, static_cast<std::size_t>(x.cols));
      std::memset(high, 0, static_cast<std::size_t>(scratch.high_stride));
      std::memset(low, 0, static_cast<std::size_t>(scratch.high_stride));
    } else {
      quantize(row, i, s.inv, q);
      if (count > 0) {
        const int limit = (1 << (outliers->outlier_bits - 1)) - 1;
        kernel.quantize_outliers(gathered, count, s.inv, s.shift, limit, high, low);
        std::fill(high + count, high + scratch.high_stride, int8_t{0});
        std::fill(low + count, low + scratch.high_stride, int8_t{0});
        if (outliers->low_in_place)
          scatter_low(low, q);
        else
          for (int64_t t = 0; t < count; ++t) q[outliers->index[t]] = 0;
      }
    }
    compensate(i, q, high, low);
  }

  void store_limbs(int64_t first, int64_t rows, const int8_t* limb, int8_t* out) const {
    if (!out) return;
    const auto found = static_cast<std::size_t>(outliers->count);
    for (int64_t r = 0; r < rows; ++r) {
      int8_t* to = out + (first + r) * outliers->capacity;
      std::memcpy(to, limb + r * scratch.high_stride, found);
      std::memset(to + found, 0, static_cast<std::size_t>(outliers->capacity) - found);
    }
  }

  void pack_outliers(const Strip& regular, const Strip& high, const Strip& low, int8_t* q) const {
    const int64_t depth = round_up(outliers->count, kGroup);
    if (outliers->a_high) pack_a(kernel, high, depth, outliers->a_high);
    if (outliers->a_low) pack_a(kernel, low, depth, outliers->a_low);
    if (outliers->b_high_transposed)
      pack_transposed(kernel, high, round_up(x.rows, kDepthAlign), nullptr,
                      outliers->b_high_transposed);
    store_limbs(regular.first, regular.rows, high.q, outliers->high);
    store_limbs(regular.first, regular.rows, low.q, outliers->low);
    if (!outliers->low_in_place && targets.b_transposed)
      for (int64_t r = 0; r < regular.rows; ++r)
        scatter_low(low.q + r * low.stride, q + r * regular.stride);
  }

  void strip(int64_t first, int64_t rows, int thread) const {
    int8_t* q = scratch.q + thread * scratch.strip_bytes;
    int8_t* high = scratch.high + thread * scratch.high_bytes;
    int8_t* low = scratch.low + thread * scratch.high_bytes;
    float* buffer = scratch.row + thread * scratch.row_stride;
    float* gathered = scratch.gathered + thread * scratch.high_stride;
    if (columns) columns->begin(x, first, rows, thread, buffer);
    for (int64_t r = 0; r < rows; ++r) {
      const float* row = load_row(kernel, x, first + r, buffer);
      if (columns) columns->add(first + r, &row, 1, thread);
      copy_columns(first + r, row);
      one_row(first + r, folded(row, x.cols, fold, first + r, buffer), q + r * scratch.stride,
              high + r * scratch.high_stride, low + r * scratch.high_stride, gathered);
    }
    const int64_t padding = round_up(rows, kDepthAlign) - rows;
    std::memset(q + rows * scratch.stride, 0, static_cast<std::size_t>(padding * scratch.stride));
    std::memset(high + rows * scratch.high_stride, 0,
                static_cast<std::size_t>(padding * scratch.high_stride));
    const Strip regular{q, scratch.stride, first, rows, x.cols};
    if (targets.row_major)
      for (int64_t r = 0; r < rows; ++r)
        std::memcpy(targets.row_major + (first + r) * x.cols, q + r * scratch.stride,
                    static_cast<std::size_t>(x.cols));
    if (targets.a) pack_a(kernel, regular, scratch.stride, targets.a);
    if (targets.b) pack_b(kernel, regular, scratch.stride, targets.b);
    if (outlier_count() > 0)
      pack_outliers(regular, {high, scratch.high_stride, first, rows, outliers->count},
                    {low, scratch.high_stride, first, rows, outliers->count}, q);
    else if (outliers) {
      store_limbs(first, rows, high, outliers->high);
      store_limbs(first, rows, low, outliers->low);
    }
    if (targets.b_transposed)
      pack_transposed(kernel, regular, round_up(x.rows, kDepthAlign), nullptr,
                      targets.b_transposed);
  }
};

// Few rows make smaller strips, so that every thread has some; only transposed targets, column
// sums and outlier tokens need whole ones.
int64_t rows_per_strip(int64_t rows, const CpuFacts& cpu, const QuantizeTargets& targets,
                       const OutlierTargets* outliers, const ColumnStats* columns) {
  const bool limbs_transposed = outliers && outliers->b_high_transposed;
  if (targets.b) return kRowsPerStripB;
  if (columns) return rows_at_a_time(*columns);
  if (targets.b_transposed || limbs_transposed) return kRowsPerStripA;
  return std::clamp<int64_t>(round_up(ceil_div(rows, 2 * cpu.threads), kTileRows), kTileRows,
                             kRowsPerStripA);
}

}  // namespace

void quantize_rows(const MatrixView& x, const float* fold, const QuantizeSpec& spec,
                   const CpuFacts& cpu, const QuantizeTargets& targets,
                   const OutlierTargets* outliers, float* scale, const ColumnStats* columns) {
  static_assert(kColumnBlock == kRowsPerStripA && kTokenBlock % kRowsPerStripA == 0);
  std::optional<ColumnPass> column_pass;
  if (columns) column_pass.emplace(*columns, cpu, x.rows, x.cols);
  const int64_t strip_rows = rows_per_strip(x.rows, cpu, targets, outliers, columns);
  const int64_t strips = ceil_div(x.rows, strip_rows);
  const Workspace<StripScratch> scratch(share_count(cpu.threads, strips), strip_rows, x.cols,
                                        outliers ? outliers->count : 0);
  Scale tensor;
  if (spec.granularity == Granularity::kTensor)
    tensor = tensor_scale_of_rows(x, fold, spec, cpu, outliers, strip_rows, scratch.at);
  const RowPass pass{x,
                     fold,
                     spec,
                     *cpu.kernel,
                     targets,
                     outliers,
                     spec.granularity == Granularity::kTensor ? &tensor : nullptr,
                     scale,
                     scratch.at,
                     targets.slices ? *targets.slices : std::vector<Slice>{{0, x.cols}},
                     column_pass ? &*column_pass : nullptr};
  const bool backwards = outliers || pass.tensor;  // after a pass that went forwards
  parallel_pass(cpu.threads, strips, backwards, [&](int64_t s, int thread) {
    const int64_t first = s * strip_rows;
    pass.strip(first, std::min(strip_rows, x.rows - first), thread);
  });
  if (column_pass) column_pass->finish();
}

}  // namespace int8tile
