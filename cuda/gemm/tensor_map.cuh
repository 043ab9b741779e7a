// Tensor maps: how the TMA unit finds the rows of an int8 operand. Made on the host, passed by
// value.
#pragma once

#include <cuda.h>

#include "../launch.cuh"

namespace int8tile::cuda {

using TensorMapEncoder = decltype(&cuTensorMapEncodeTiled);

/// The driver's function, found through the runtime so that nothing links against the driver.
inline TensorMapEncoder tensor_map_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                         cudaEnableDefault, &found),
        "tensor map");
#else
  check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found),
        "tensor map");
#endif
  if (found != cudaDriverEntryPointSuccess)
    throw std::runtime_error("int8tile: CUDA: tensor map: the driver is older than CUDA 12.0");
  return reinterpret_cast<TensorMapEncoder>(function);
}

/// Boxes of box_rows x box_depth bytes of data[rows, depth], in shared memory with the 128-byte
/// swizzle; zeros out of range. Address and stride are multiples of 16.
inline CUtensorMap tensor_map(const int8_t* data, int64_t rows, int64_t depth, int64_t stride,
                              int box_rows, int box_depth) {
  static const auto encode = tensor_map_encoder();
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(depth), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(box_depth), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  CUtensorMap map;
  const CUresult status =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<int8_t*>(data), sizes, strides, box,
             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw std::runtime_error(concat("int8tile: CUDA: tensor map of [", rows, ", ", depth,
                                    "] with rows of ", stride, " bytes: error ",
                                    static_cast<int>(status)));
  return map;
}

}  // namespace int8tile::cuda
