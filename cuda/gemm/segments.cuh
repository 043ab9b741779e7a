// How K is cut into segments: the panel of high limbs first, then the regular part.
#pragma once

#include <cuda_runtime.h>

#include "int8tile/types.hpp"

namespace int8tile::cuda {

constexpr int kMmaDepth = 32;  // int8 values of K that one matrix instruction takes

/// The accumulator is shifted left by 7 once, after `shift_at` steps of 32 in the panel.
struct SegmentPlan {
  int shift_at = 0;     // steps of the panel; 0: no outliers, a plain int8 GEMM
  int panel_tiles = 0;  // K tiles that the panel spans; zeros fill the last

  __host__ __device__ static SegmentPlan make(int high_count, int high_stride, int tile_depth) {
    int count = high_count < high_stride ? high_count : high_stride;
    count = count > 0 ? count : 0;
    const int steps = (count + kMmaDepth - 1) / kMmaDepth;
    return {steps, (steps * kMmaDepth + tile_depth - 1) / tile_depth};
  }
};

/// One limb up, modulo 2^32: only the final value has to fit.
template <class Accumulator>
__device__ void shift_limb(Accumulator& acc) {
#pragma unroll
  for (int i = 0; i < size(acc); ++i)
    acc(i) = static_cast<int>(static_cast<unsigned>(acc(i)) << kLimbBits);
}

}  // namespace int8tile::cuda
