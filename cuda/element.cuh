// Float matrices of any dtype and strides, read eight elements at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "int8tile/types.hpp"

namespace int8tile::cuda {

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float to_float(__half value) { return __half2float(value); }

__device__ inline void store_float(float value, float* to) { *to = value; }
__device__ inline void store_float(float value, __nv_bfloat16* to) {
  *to = __float2bfloat16_rn(value);
}
__device__ inline void store_float(float value, __half* to) { *to = __float2half_rn(value); }

constexpr int kVector = 8;        // elements a thread reads at once
constexpr int kVectorBytes = 16;  // of one load
template <class T>
constexpr int kPerLoad = kVectorBytes / static_cast<int>(sizeof(T));

/// x[rows, cols] in device memory; strides count elements.
template <class T>
struct View {
  const T* data;
  int64_t rows, cols, row_stride, col_stride;
  bool aligned;  // whole vectors of a row can be loaded at once

  __device__ float at(int64_t i, int64_t j) const {
    return to_float(data[i * row_stride + j * col_stride]);
  }

  /// x[i, j ... j + 7]; zero beyond the matrix. j is a multiple of 8.
  __device__ void load(int64_t i, int64_t j, float (&out)[kVector]) const {
    if (aligned && i < rows && j + kVector <= cols) {
      const T* from = data + i * row_stride + j;
#pragma unroll
      for (int part = 0; part < kVector; part += kPerLoad<T>) {
        const uint4 words = *reinterpret_cast<const uint4*>(from + part);
        const T* values = reinterpret_cast<const T*>(&words);
#pragma unroll
        for (int c = 0; c < kPerLoad<T>; ++c) out[part + c] = to_float(values[c]);
      }
      return;
    }
#pragma unroll
    for (int c = 0; c < kVector; ++c) out[c] = i < rows && j + c < cols ? at(i, j + c) : 0.0f;
  }
};

template <class T>
View<T> view_as(const MatrixView& x) {
  const bool aligned = x.col_stride == 1 && reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 &&
                       x.row_stride * static_cast<int64_t>(sizeof(T)) % kVectorBytes == 0;
  return {static_cast<const T*>(x.data), x.rows, x.cols, x.row_stride, x.col_stride, aligned};
}

template <class T>
struct Tag {
  using type = T;
};

/// Calls body(Tag<T>{}) with the element type of `dtype`.
template <class Body>
void with_dtype(DType dtype, const Body& body) {
  if (dtype == DType::kFloat32) return body(Tag<float>{});
  if (dtype == DType::kBFloat16) return body(Tag<__nv_bfloat16>{});
  body(Tag<__half>{});
}

}  // namespace int8tile::cuda
