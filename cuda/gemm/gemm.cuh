// Stage 5 on the device: out[m,n] = a[m,k] @ b[n,k].T over segmented K.
#pragma once

#include "../epilogue.cuh"
#include "int8tile/cuda.hpp"

namespace int8tile::cuda {

enum class OutputType { kFloat32, kBFloat16, kFloat16, kInt32 };

constexpr OutputType output_type(DType dtype) {
  return dtype == DType::kFloat32    ? OutputType::kFloat32
         : dtype == DType::kBFloat16 ? OutputType::kBFloat16
                                     : OutputType::kFloat16;
}

/// Operands with K innermost. All strides are in bytes and multiples of 16, k too.
struct GemmArgs {
  int64_t m = 0, n = 0, k = 0;
  const int8_t* a = nullptr;
  const int8_t* b = nullptr;
  int64_t a_stride = 0, b_stride = 0;
  // Limb panels [m, high_stride] and [n, high_stride]; the accumulator is shifted left by 7 after
  // the first *high_count columns, and a_high is zero beyond them.
  const int8_t* a_high = nullptr;
  const int8_t* b_high = nullptr;
  int64_t high_stride = 0;
  const int32_t* high_count = nullptr;    // device; null: no panels
  const int32_t* live_columns = nullptr;  // device; columns of out from here on are not wanted
  Epilogue epilogue;                      // not for int32
  void* out = nullptr;
  int64_t out_stride = 0;  // in elements
  OutputType type = OutputType::kFloat32;
};

/// The tile of outputs that one thread block computes.
struct GemmTile {
  int m = 0, n = 0;
};
inline constexpr GemmTile kLargeTile{128, 256};
inline constexpr GemmTile kSmallTile{64, 128};

/// Small tiles where large ones would leave multiprocessors without work.
constexpr GemmTile choose_tile(int64_t m, int64_t n, int multiprocessors) {
  const int64_t tiles = ceil_div(m, kLargeTile.m) * ceil_div(n, kLargeTile.n);
  return m > kSmallTile.m && tiles >= multiprocessors ? kLargeTile : kSmallTile;
}

/// One visit of the GEMM; every size must be above 0.
void gemm(const GemmArgs& args, const Stream& stream);

}  // namespace int8tile::cuda
