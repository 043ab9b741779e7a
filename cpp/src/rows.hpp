// Reading one row of a float matrix of any dtype and strides.
#pragma once

#include <cstddef>

#include "int8tile/types.hpp"
#include "kernels/kernel.hpp"

namespace int8tile {

/// Row `row` as contiguous float32: the matrix's own memory where possible, else `buffer` [cols].
inline const float* load_row(const Kernel& kernel, const MatrixView& x, int64_t row,
                             float* buffer) {
  if (x.dtype == DType::kFloat32) {
    const float* in = static_cast<const float*>(x.data) + row * x.row_stride;
    if (x.col_stride == 1) return in;
    for (int64_t j = 0; j < x.cols; ++j) buffer[j] = in[j * x.col_stride];
    return buffer;
  }
  const uint16_t* in = static_cast<const uint16_t*>(x.data) + row * x.row_stride;
  const auto convert =
      x.dtype == DType::kBFloat16 ? kernel.bfloat16_to_float : kernel.float16_to_float;
  if (x.col_stride == 1) {
    convert(in, x.cols, buffer);
    return buffer;
  }
  constexpr int64_t kChunk = 256;
  uint16_t gathered[kChunk];
  for (int64_t begin = 0; begin < x.cols; begin += kChunk) {
    const int64_t count = x.cols - begin < kChunk ? x.cols - begin : kChunk;
    for (int64_t j = 0; j < count; ++j) gathered[j] = in[(begin + j) * x.col_stride];
    convert(gathered, count, buffer + begin);
  }
  return buffer;
}

}  // namespace int8tile
