// The gradient's two int8 copies, one for each product of backward, in one read of it.
#include "quantize.cuh"
#include "tile.cuh"

namespace int8tile::cuda {
namespace {

struct GradientJob {
  const float* fold;  // [rows] multiplies what the scales per column are for; null: ones
  ScaleSource rows, columns;
  const int64_t* seed;
  GradientTargets to;
  TileExtent extent;
};

/// The inverse scales of a tile; the first block across and down stores its rows' and columns'.
struct TileScales {
  float rows[kTileRows], columns[kTileCols];

  __device__ void load(const GradientJob& job, const TilePlace& at, int64_t row_count,
                       int64_t col_count) {
    static_assert(kTileRows + kTileCols <= kTileThreads);
    const int t = static_cast<int>(threadIdx.x);
    if (t < kTileRows)
      rows[t] = inverse(job.rows, at.first_row + t, row_count, at.first_col == 0, job.to.row_scale);
    else if (t < kTileRows + kTileCols)
      columns[t - kTileRows] = inverse(job.columns, at.first_col + t - kTileRows, col_count,
                                       at.first_row == 0, job.to.column_scale);
    __syncthreads();
  }

  __device__ static float inverse(const ScaleSource& source, int64_t i, int64_t count, bool store,
                                  float* scales) {
    if (i >= count) return 0.0f;
    const Scale scale = source.of(i);
    if (store) scales[i] = scale.scale;
    return scale.inv;
  }
};

/// Shared: both copies hold the same integers, those of one scale for the tensor. Tokens: some rows
/// are outlier tokens, whose second copy has two limbs.
template <class T, bool Shared, bool Stochastic, bool Tokens>
__global__ __launch_bounds__(kTileThreads) void gradient_kernel(View<T> x, GradientJob job,
                                                                TokenLimbs tokens) {
  __shared__ TurnedTile turned;
  __shared__ TileScales scales;
  const TilePlace at(job.extent);
  scales.load(job, at, x.rows, x.cols);
  const uint32_t row_base = Stochastic ? rounding_base(*job.seed, kGradInputId) : 0;
  const uint32_t column_base = Stochastic ? rounding_base(*job.seed, kGradWeightId) : 0;

  uint32_t columns[kVector] = {};
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
    const int64_t i = at.row + r;
    float values[kVector];
    x.load(i, at.col, values);
    const float factor = job.fold && i < x.rows ? job.fold[i] : 1.0f;
    const int32_t place = Tokens ? tokens.place(i, x.rows) : -1;
    const float row_inv = scales.rows[at.down * kThreadRows + r];
    uint32_t words[2] = {};
#pragma unroll
    for (int c = 0; c < kVector; ++c) {
      const auto index = static_cast<uint64_t>(i) * static_cast<uint64_t>(x.cols) +
                         static_cast<uint64_t>(at.col + c);
      const int q = quantize_value<Stochastic>(values[c], row_inv, row_base, index);
      int folded = q;
      if constexpr (!Shared) {
        const float value = __fmul_rn(values[c], factor);
        const float inv = scales.columns[at.across * kVector + c];
        if (place >= 0) {
          folded = round_nearest(__fmul_rn(value, inv), static_cast<float>(kOutlierMax));
          if (at.col + c < x.cols) tokens.store(place, at.col + c, folded);
          folded = low_limb(folded);
        } else {
          folded = quantize_value<Stochastic>(value, inv, column_base, index);
        }
      }
      words[c / 4] |= (static_cast<uint32_t>(q) & 0xffu) << (8 * (c % 4));
      columns[c] |= (static_cast<uint32_t>(folded) & 0xffu) << (8 * r);
    }
    if (i < x.rows && at.col < job.extent.row_bytes)
      *reinterpret_cast<uint2*>(job.to.row_major + i * job.extent.row_bytes + at.col) =
          make_uint2(words[0], words[1]);
  }
  store_transposed(at, columns, turned, x.cols, job.extent, job.to.transposed);
}

template <class T, bool Shared, bool Tokens>
void launch_gradient(const MatrixView& g, const GradientJob& job, const TokenLimbs& tokens,
                     Rounding rounding, const Stream& stream) {
  const auto kernel = rounding == Rounding::kStochastic ? gradient_kernel<T, Shared, true, Tokens>
                                                        : gradient_kernel<T, Shared, false, Tokens>;
  launch(stream, kernel, tile_grid(job.extent), dim3(kTileThreads), 0, view_as<T>(g), job, tokens);
}

}  // namespace

void quantize_gradient(const MatrixView& g, const float* fold, const GradientAbsmax& absmax,
                       const TokenLimbs& tokens, const Quantization& how, const GradientTargets& to,
                       const Stream& stream) {
  const bool tensor = how.granularity == Granularity::kTensor;
  const ScaleSource columns = column_source(absmax.columns, tokens, how);
  ScaleSource rows = columns;
  if (!tensor) rows.regular = absmax.rows, rows.outlier = nullptr;
  const GradientJob job{fold, rows, columns, how.seed, to, tile_extent(g)};
  with_dtype(g.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (tensor)
      launch_gradient<T, true, false>(g, job, tokens, how.rounding, stream);
    else if (tokens.slot)
      launch_gradient<T, false, true>(g, job, tokens, how.rounding, stream);
    else
      launch_gradient<T, false, false>(g, job, tokens, how.rounding, stream);
  });
}

}  // namespace int8tile::cuda
