// Row absmax and the tile that writes int8 both row-major and transposed in one read of x.
#include "quantize.cuh"
#include "tile.cuh"

namespace int8tile::cuda {
namespace {

constexpr int kRowThreads = 128;

/// The largest value of the block joins *to.
__device__ void join_maximum(uint32_t value, uint32_t* shared, uint32_t* to, bool atomic) {
  value = __reduce_max_sync(kAllLanes, value);
  if (threadIdx.x % kWarp == 0) atomicMax(shared, value);
  __syncthreads();
  if (threadIdx.x != 0) return;
  if (atomic)
    atomicMax(to, *shared);
  else
    *to = *shared;
}

template <class T>
__global__ __launch_bounds__(kRowThreads) void row_absmax_kernel(View<T> x, const float* fold,
                                                                 OutlierColumns outliers,
                                                                 AbsmaxBits absmax, bool tensor,
                                                                 const uint32_t* wanted) {
  if (skipped(wanted)) return;
  __shared__ uint32_t shared[2];
  if (threadIdx.x < 2) shared[threadIdx.x] = 0;
  __syncthreads();
  const int64_t i = blockIdx.x;
  const int32_t* slot = outliers.slot;
  const float factor = fold ? fold[i] : 1.0f;
  uint32_t regular = 0, outlier = 0;
  for (int64_t j = threadIdx.x * kVector; j < x.cols; j += kRowThreads * kVector) {
    float values[kVector];
    x.load(i, j, values);
#pragma unroll
    for (int c = 0; c < kVector; ++c) {
      const float value = __fmul_rn(values[c], factor);
      const int32_t t = slot && j + c < x.cols ? slot[j + c] : -1;
      const uint32_t bits = abs_bits(t >= 0 ? outliers.divided(value, t) : value);
      uint32_t& largest = t >= 0 ? outlier : regular;
      largest = bits > largest ? bits : largest;
    }
  }
  join_maximum(regular, &shared[0], absmax.regular + (tensor ? 0 : i), tensor);
  if (slot) join_maximum(outlier, &shared[1], absmax.outlier + (tensor ? 0 : i), tensor);
}

}  // namespace

void row_absmax(const MatrixView& x, const float* fold, const OutlierColumns& outliers,
                const AbsmaxBits& absmax, const Quantization& how, const Stream& stream) {
  if (x.rows == 0) return;
  const bool tensor = how.granularity == Granularity::kTensor;
  if (tensor) {
    fill_zero(absmax.regular, 4, stream);
    if (outliers.slot) fill_zero(absmax.outlier, 4, stream);
  }
  with_dtype(x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(stream, row_absmax_kernel<T>, dim3(static_cast<unsigned>(x.rows)), dim3(kRowThreads), 0,
           view_as<T>(x), fold, outliers, absmax, tensor, how.wanted);
  });
}

namespace {

struct TileJob {
  const float* fold;
  ScaleSource source;
  const int32_t* slot;
  int limit;  // largest |integer| of an outlier
  const int64_t* seed;
  uint32_t gemm_id;
  const uint32_t* wanted;
  Int8Targets to;
  TileExtent extent;
};

/// Scales of the tile's rows or columns to shared memory; one block of each stores them.
template <bool Columns>
__device__ inline void load_scales(const TileJob& job, int64_t first, int64_t end, bool store,
                                   Scale* scales) {
  constexpr int kCount = Columns ? kTileCols : kTileRows;
  const int t = static_cast<int>(threadIdx.x);
  if (t < kCount) {
    scales[t] = first + t < end ? job.source.of(first + t) : Scale{0.0f, 0.0f, 0};
    if (store && first + t < end) job.to.scale[first + t] = scales[t].scale;
  }
  __syncthreads();
}

template <class T, bool Columns, bool Stochastic, bool Tokens>
__global__ __launch_bounds__(kTileThreads) void quantize_kernel(View<T> x, TileJob job,
                                                                TokenLimbs tokens) {
  __shared__ TurnedTile turned;
  __shared__ Scale scales[Columns ? kTileCols : kTileRows];
  if (skipped(job.wanted)) return;
  const TilePlace at(job.extent);
  if constexpr (Columns)
    load_scales<true>(job, at.first_col, x.cols, at.first_row == 0, scales);
  else
    load_scales<false>(job, at.first_row, x.rows, at.first_col == 0, scales);
  const uint32_t base = Stochastic ? rounding_base(*job.seed, job.gemm_id) : 0;
  bool apart[kVector];
#pragma unroll
  for (int c = 0; c < kVector; ++c)
    apart[c] = !Columns && job.slot && at.col + c < x.cols && job.slot[at.col + c] >= 0;

  uint32_t columns[kVector] = {};
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
    const int64_t i = at.row + r;
    float values[kVector];
    x.load(i, at.col, values);
    const float factor = job.fold && i < x.rows ? job.fold[i] : 1.0f;
    const int32_t place = Tokens ? tokens.place(i, x.rows) : -1;
    uint32_t words[2] = {};
#pragma unroll
    for (int c = 0; c < kVector; ++c) {
      const Scale& scale = scales[Columns ? at.across * kVector + c : at.down * kThreadRows + r];
      const auto index = static_cast<uint64_t>(i) * static_cast<uint64_t>(x.cols) +
                         static_cast<uint64_t>(at.col + c);
      const float value = __fmul_rn(values[c], factor);
      int q;
      if constexpr (Tokens) {
        if (place >= 0) {
          const int v = quantize_outlier(value, scale, job.limit);
          q = low_limb(v);
          if (at.col + c < x.cols) tokens.store(place, at.col + c, v);
        } else {
          q = quantize_value<Stochastic>(value, scale.inv, base, index);
        }
      } else {
        q = apart[c] ? low_limb(quantize_outlier(value, scale, job.limit))
                     : quantize_value<Stochastic>(value, scale.inv, base, index);
      }
      const uint32_t byte = static_cast<uint32_t>(q) & 0xffu;
      words[c / 4] |= byte << (8 * (c % 4));
      columns[c] |= byte << (8 * r);
    }
    if (job.to.row_major && i < x.rows && at.col < job.extent.row_bytes)
      *reinterpret_cast<uint2*>(job.to.row_major + i * job.extent.row_bytes + at.col) =
          make_uint2(words[0], words[1]);
  }
  if (job.to.transposed)
    store_transposed(at, columns, turned, x.cols, job.extent, job.to.transposed);
}

template <bool Columns, bool Tokens = false>
void quantize_tiles(const MatrixView& x, TileJob job, const Quantization& how, const Stream& stream,
                    const TokenLimbs& tokens = {}) {
  job.seed = how.seed;
  job.gemm_id = how.gemm_id;
  job.wanted = how.wanted;
  job.extent = tile_extent(x);
  with_dtype(x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto kernel = how.rounding == Rounding::kStochastic
                            ? quantize_kernel<T, Columns, true, Tokens>
                            : quantize_kernel<T, Columns, false, Tokens>;
    launch(stream, kernel, tile_grid(job.extent), dim3(kTileThreads), 0, view_as<T>(x), job,
           tokens);
  });
}

}  // namespace

void quantize_rows(const MatrixView& x, const float* fold, const OutlierColumns& outliers,
                   const Quantization& how, const AbsmaxBits& absmax, const Int8Targets& to,
                   const Stream& stream) {
  if (x.rows == 0 || x.cols == 0) {
    if (x.rows > 0 && to.scale) fill_zero(to.scale, x.rows * 4, stream);
    return;
  }
  row_absmax(x, fold, outliers, absmax, how, stream);
  quantize_known_rows(x, fold, outliers, how, absmax, to, stream);
}

void quantize_known_rows(const MatrixView& x, const float* fold, const OutlierColumns& outliers,
                         const Quantization& how, const AbsmaxBits& absmax, const Int8Targets& to,
                         const Stream& stream) {
  TileJob job{};
  job.fold = fold;
  job.source = scale_source(absmax, outliers, how);
  job.slot = outliers.slot;
  job.limit = outlier_limit(outliers.outlier_bits);
  job.to = to;
  quantize_tiles<false>(x, job, how, stream);
}

void quantize_columns(const MatrixView& x, const float* fold, const uint32_t* absmax,
                      const TokenLimbs& tokens, const Quantization& how, const Int8Targets& to,
                      const Stream& stream) {
  if (x.cols == 0) return;
  if (x.rows == 0) return fill_zero(to.scale, x.cols * 4, stream);
  TileJob job{};
  job.fold = fold;
  job.source = column_source(absmax, tokens, how);
  job.limit = outlier_limit(kMaxOutlierBits);
  job.to = to;
  if (tokens.slot)
    quantize_tiles<true, true>(x, job, how, stream, tokens);
  else
    quantize_tiles<true>(x, job, how, stream);
}

}  // namespace int8tile::cuda
