// Gains of outlier columns: powers of two that move from x to the weight where it has room for
// them.
#pragma once

#include "quantize.cuh"

namespace int8tile::cuda {

/// gain // [capacity]: exponents e of the largest 2^e with threshold * 2^e <= absmax of the column
/// of x, |w[n, j]| * 2^e <= absmax of row n for all n, and 2^e <= 2^kMaxGainExponent; 0 where w has
/// a column of zeros and in unused slots. column_absmax // [k] bits of x
void choose_gains(const GainWeight& weight, const Quantization& how, const uint32_t* column_absmax,
                  float threshold, const OutlierColumns& outliers, int32_t* gain,
                  const Stream& stream);

/// Rewrites the gained columns of a quantised weight: from w[:, j] * 2^e, with the scale of each
/// row, scale // [n]. values // [n, round_up(k, 16)]
void gain_columns(const MatrixView& weight, const float* scale, const OutlierColumns& outliers,
                  int8_t* values, const Stream& stream);

}  // namespace int8tile::cuda
