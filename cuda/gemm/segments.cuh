// How K is cut into segments: the panel of high limbs first, then the regular part.
#pragma once

#include <cuda_runtime.h>

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

}  // namespace int8tile::cuda
