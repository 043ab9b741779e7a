// Stage 6 on the device: exact int32 accumulators to outputs,
// fl(fl(fl(acc) * row_scale) * col_scale) + bias, each operation rounded once.
#pragma once

#include <cuda_runtime.h>

#include "element.cuh"

namespace int8tile::cuda {

struct Epilogue {
  const float* row_scale = nullptr;  // [m]
  const float* col_scale = nullptr;  // [n] with stride `col_stride`; null: ones
  int col_stride = 1;
  const float* bias = nullptr;  // [n]; null: none
  bool accumulate = false;      // adds to a float32 output
};

__device__ inline float dequantize(int acc, float row_scale, float col_scale) {
  return __fmul_rn(__fmul_rn(__int2float_rn(acc), row_scale), col_scale);
}

__device__ inline float row_scale_at(const Epilogue& epilogue, int64_t m) {
  return epilogue.row_scale[m];
}

__device__ inline float col_scale_at(const Epilogue& epilogue, int64_t n) {
  return epilogue.col_scale ? epilogue.col_scale[n * epilogue.col_stride] : 1.0f;
}

__device__ inline float bias_at(const Epilogue& epilogue, int64_t n) {
  return epilogue.bias ? epilogue.bias[n] : 0.0f;
}

/// One output in float32; `bias` counts only where there is one, so that -0 stays -0.
__device__ inline float finish(int acc, float row_scale, float col_scale, float bias,
                               const Epilogue& epilogue) {
  const float value = dequantize(acc, row_scale, col_scale);
  return epilogue.bias ? __fadd_rn(value, bias) : value;
}

}  // namespace int8tile::cuda
