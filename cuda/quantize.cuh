// Stage 3 on the device: float matrices to int8 in the layouts that the GEMM reads.
#pragma once

#include <cuda_runtime.h>

#include "arithmetic.cuh"
#include "int8tile/cuda.hpp"

namespace int8tile::cuda {

/// The outlier columns of a matrix, as choose_columns found them.
struct OutlierColumns {
  const int32_t* slot = nullptr;   // [cols], place in `index` or -1; null: no split
  const int32_t* index = nullptr;  // [capacity]
  const int32_t* count = nullptr;  // how many were found
  int64_t capacity = 0;
  int64_t cols = 0;
  int outlier_bits = 12;
  const int32_t* gain = nullptr;  // e [capacity]: columns are divided by 2^e; null: by 1

  __device__ bool holds(int64_t t) const { return t < *count && t < capacity; }
  /// The column of a slot that it holds. Callers hand in what an earlier call found; another index
  /// would be a wild address, so it ends the kernel.
  __device__ int64_t column(int64_t t) const {
    const int64_t j = index[t];
    if (j < 0 || j >= cols) __trap();
    return j;
  }
  __device__ float divided(float value, int64_t t) const {
    return gain ? __fmul_rn(value, power_of_two(-gain[t])) : value;
  }
};

/// Absmax of the rows (or of the tensor) in bits: `regular` and `outlier`, each [rows].
struct AbsmaxBits {
  uint32_t* regular = nullptr;
  uint32_t* outlier = nullptr;  // null: no split
};

/// The scales of rows whose absmax was found with or without these outlier columns.
inline ScaleSource scale_source(const AbsmaxBits& absmax, const OutlierColumns& outliers,
                                const Quantization& how) {
  return {absmax.regular, outliers.slot ? absmax.outlier : nullptr,
          how.granularity == Granularity::kTensor ? 0 : 1, how.scale, outliers.outlier_bits};
}

/// Where integers go; null means not wanted. Rows have round_up(depth, 16) bytes and end in zeros.
struct Int8Targets {
  int8_t* row_major = nullptr;   // [rows, round_up(cols, 16)]
  int8_t* transposed = nullptr;  // [cols, round_up(rows, 16)]
  float* scale = nullptr;        // [rows], or [cols] where scales are per column
};

/// The absmax of the rows, or in the first place that of the tensor; of x times its fold.
void row_absmax(const MatrixView& x, const float* fold, const OutlierColumns& outliers,
                const AbsmaxBits& absmax, const Quantization& how, const Stream& stream);

/// One scale per row of x, or one for the tensor. fold // [rows] multiplies x first; may be null.
/// Low limbs stand at the outlier columns, of values without their gains.
void quantize_rows(const MatrixView& x, const float* fold, const OutlierColumns& outliers,
                   const Quantization& how, const AbsmaxBits& absmax, const Int8Targets& to,
                   const Stream& stream);
/// The same, from the absmax that row_absmax found.
void quantize_known_rows(const MatrixView& x, const float* fold, const OutlierColumns& outliers,
                         const Quantization& how, const AbsmaxBits& absmax, const Int8Targets& to,
                         const Stream& stream);

/// The outlier tokens of a gradient, for its copy with a scale per column: low limbs stand at them.
struct TokenLimbs {
  const int32_t* slot = nullptr;     // [rows] place of a token or -1; null: none is split
  const uint32_t* absmax = nullptr;  // [cols], or [1], bits of the outlier tokens
  int8_t* high = nullptr;            // [cols, stride]; only what tokens hold is written
  int64_t stride = 0;

  /// The place of row `i`, -1: it is no outlier token.
  __device__ int32_t place(int64_t i, int64_t rows) const { return i < rows ? slot[i] : -1; }
  __device__ void store(int32_t place, int64_t j, int v) const {
    high[j * stride + place] = high_limb(v);
  }
};

/// The scales of columns whose absmax was found with or without these outlier tokens.
inline ScaleSource column_source(const uint32_t* absmax, const TokenLimbs& tokens,
                                 const Quantization& how) {
  return {absmax, tokens.slot ? tokens.absmax : nullptr,
          how.granularity == Granularity::kTensor ? 0 : 1, how.scale, kMaxOutlierBits};
}

/// One scale per column of x, or one for the tensor, from the column absmax (of x times fold).
void quantize_columns(const MatrixView& x, const float* fold, const uint32_t* absmax,
                      const TokenLimbs& tokens, const Quantization& how, const Int8Targets& to,
                      const Stream& stream);

/// Both copies of a gradient: row-major with a scale per row, and times a fold, transposed, with a
/// scale per column. With one scale for the tensor both hold the same integers.
struct GradientTargets {
  int8_t *row_major = nullptr, *transposed = nullptr;
  float *row_scale = nullptr, *column_scale = nullptr;  // [rows], [cols]
};

struct GradientAbsmax {
  const uint32_t* rows = nullptr;     // [rows] bits of g; not read for a tensor
  const uint32_t* columns = nullptr;  // [cols], or [1], bits of g times the fold
};

/// The same integers and scales as quantize_rows and quantize_columns give; g is not empty. Tokens
/// are not for one scale of the tensor, which both copies share.
void quantize_gradient(const MatrixView& g, const float* fold, const GradientAbsmax& absmax,
                       const TokenLimbs& tokens, const Quantization& how, const GradientTargets& to,
                       const Stream& stream);

/// High limbs of the outlier columns, after quantize_rows with the same absmax; zero beyond those
/// found. row_major // [rows, round_up(capacity, 16)]; transposed // [capacity, round_up(rows,
/// 16)].
void quantize_high_limbs(const MatrixView& x, const OutlierColumns& outliers,
                         const Quantization& how, const AbsmaxBits& absmax, int8_t* row_major,
                         int8_t* transposed, const Stream& stream);

/// The low limbs of the columns that have a gain, after quantize_rows, which does not divide them
/// (its absmax does).
void quantize_gained_low_limbs(const MatrixView& x, const OutlierColumns& outliers,
                               const Quantization& how, const AbsmaxBits& absmax,
                               const Int8Targets& to, const Stream& stream);

/// panel[i, t] = weight[i, index[t]], zero beyond those found. weight // [rows, round_up(cols,
/// 16)].
void gather_columns(const int8_t* weight, int64_t rows, const OutlierColumns& outliers,
                    int8_t* panel, const Stream& stream);

/// Moves the low limbs from their columns to a panel // [rows, round_up(capacity, 16)] and leaves
/// zeros. values // [rows, round_up(cols, 16)].
void lift_low_limbs(int8_t* values, int64_t rows, const OutlierColumns& outliers, int8_t* panel,
                    const Stream& stream);

/// to[t] = from[index[t]] for the columns found; rows of `bytes`, a multiple of 16.
void gather_rows(const int8_t* from, int64_t bytes, const OutlierColumns& outliers, int8_t* to,
                 const Stream& stream);

}  // namespace int8tile::cuda
