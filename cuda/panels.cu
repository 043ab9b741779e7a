// Panels of the outlier columns: limbs of x and gathered columns of the weight.
#include "arithmetic.cuh"
#include "element.cuh"
#include "launch.cuh"
#include "quantize.cuh"

namespace int8tile::cuda {
namespace {

/// One limb a thread; neighbors are neighbors in memory, whichever way the panel lies.
template <class T, bool Transposed>
__global__ void high_limbs_kernel(View<T> x, ScaleSource source, OutlierColumns outliers, int limit,
                                  int64_t outer, int64_t stride, int8_t* to) {
  const int64_t at = linear_index();
  if (at >= outer * stride) return;
  const int64_t i = Transposed ? at % stride : at / stride;
  const int64_t t = Transposed ? at / stride : at % stride;
  int8_t limb = 0;
  if (i < x.rows && outliers.holds(t)) {
    const float value = outliers.divided(x.at(i, outliers.column(t)), t);
    limb = high_limb(quantize_outlier(value, source.of(i), limit));
  }
  to[at] = limb;
}

template <class T, bool Transposed>
void high_limbs(const MatrixView& x, const ScaleSource& source, const OutlierColumns& outliers,
                int8_t* to, const Stream& stream) {
  const int64_t outer = Transposed ? outliers.capacity : x.rows;
  const int64_t stride = round_up(Transposed ? x.rows : outliers.capacity, kDepthAlign);
  launch(stream, high_limbs_kernel<T, Transposed>, linear_grid(outer * stride),
         dim3(kLinearThreads), 0, view_as<T>(x), source, outliers,
         outlier_limit(outliers.outlier_bits), outer, stride, to);
}

/// One element a thread; columns without a gain stay as they are.
template <class T>
__global__ void gained_low_limbs_kernel(View<T> x, ScaleSource source, OutlierColumns outliers,
                                        int limit, Int8Targets to) {
  const int64_t at = linear_index();
  if (at >= x.rows * outliers.capacity) return;
  const int64_t i = at / outliers.capacity, t = at % outliers.capacity;
  if (!outliers.holds(t) || outliers.gain[t] == 0) return;
  const int64_t j = outliers.column(t);
  const float value = outliers.divided(x.at(i, j), t);
  const int8_t limb = low_limb(quantize_outlier(value, source.of(i), limit));
  to.row_major[i * round_up(x.cols, kDepthAlign) + j] = limb;
  if (to.transposed) to.transposed[j * round_up(x.rows, kDepthAlign) + i] = limb;
}

}  // namespace

void quantize_gained_low_limbs(const MatrixView& x, const OutlierColumns& outliers,
                               const Quantization& how, const AbsmaxBits& absmax,
                               const Int8Targets& to, const Stream& stream) {
  if (x.rows * outliers.capacity == 0) return;
  with_dtype(x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(stream, gained_low_limbs_kernel<T>, linear_grid(x.rows * outliers.capacity),
           dim3(kLinearThreads), 0, view_as<T>(x), scale_source(absmax, outliers, how), outliers,
           outlier_limit(outliers.outlier_bits), to);
  });
}

void quantize_high_limbs(const MatrixView& x, const OutlierColumns& outliers,
                         const Quantization& how, const AbsmaxBits& absmax, int8_t* row_major,
                         int8_t* transposed, const Stream& stream) {
  if (x.rows == 0 || outliers.capacity == 0) return;
  const ScaleSource source = scale_source(absmax, outliers, how);
  with_dtype(x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (row_major) high_limbs<T, false>(x, source, outliers, row_major, stream);
    if (transposed) high_limbs<T, true>(x, source, outliers, transposed, stream);
  });
}

namespace {

__global__ void gather_columns_kernel(const int8_t* weight, int64_t rows, int64_t depth_stride,
                                      OutlierColumns outliers, int64_t stride, int8_t* panel) {
  const int64_t at = linear_index();
  if (at >= rows * stride) return;
  const int64_t i = at / stride, t = at % stride;
  panel[at] = outliers.holds(t) ? weight[i * depth_stride + outliers.column(t)] : int8_t{0};
}

__global__ void lift_low_kernel(int8_t* values, int64_t rows, int64_t depth_stride,
                                OutlierColumns outliers, int64_t stride, int8_t* panel) {
  const int64_t at = linear_index();
  if (at >= rows * stride) return;
  const int64_t i = at / stride, t = at % stride;
  int8_t limb = 0;
  if (outliers.holds(t)) {
    int8_t& value = values[i * depth_stride + outliers.column(t)];
    limb = value;
    value = 0;
  }
  panel[at] = limb;
}

__global__ void gather_rows_kernel(const int8_t* from, int64_t vectors, OutlierColumns outliers,
                                   int8_t* to) {
  const int64_t at = linear_index();
  const int64_t t = at / vectors, v = at % vectors;
  if (!outliers.holds(t)) return;
  reinterpret_cast<uint4*>(to)[at] =
      reinterpret_cast<const uint4*>(from)[outliers.column(t) * vectors + v];
}

}  // namespace

void gather_columns(const int8_t* weight, int64_t rows, const OutlierColumns& outliers,
                    int8_t* panel, const Stream& stream) {
  const int64_t stride = round_up(outliers.capacity, kDepthAlign);
  if (rows * stride == 0) return;
  launch(stream, gather_columns_kernel, linear_grid(rows * stride), dim3(kLinearThreads), 0, weight,
         rows, round_up(outliers.cols, kDepthAlign), outliers, stride, panel);
}

void lift_low_limbs(int8_t* values, int64_t rows, const OutlierColumns& outliers, int8_t* panel,
                    const Stream& stream) {
  const int64_t stride = round_up(outliers.capacity, kDepthAlign);
  if (rows * stride == 0) return;
  launch(stream, lift_low_kernel, linear_grid(rows * stride), dim3(kLinearThreads), 0, values, rows,
         round_up(outliers.cols, kDepthAlign), outliers, stride, panel);
}

void gather_rows(const int8_t* from, int64_t bytes, const OutlierColumns& outliers, int8_t* to,
                 const Stream& stream) {
  const int64_t vectors = bytes / kDepthAlign;
  if (outliers.capacity * vectors == 0) return;
  launch(stream, gather_rows_kernel, linear_grid(outliers.capacity * vectors), dim3(kLinearThreads),
         0, from, vectors, outliers, to);
}

}  // namespace int8tile::cuda
