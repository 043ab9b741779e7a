// Shared by the forward and backward pass: workspaces, sums over slices of K, outputs without K.
#pragma once

#include <cstdint>
#include <vector>

#include "gemm/gemm.cuh"
#include "int8tile/check.hpp"
#include "int8tile/cuda.hpp"
#include "int8tile/memory.hpp"
#include "int8tile/plan.hpp"
#include "quantize.cuh"

namespace int8tile::cuda {

/// Weights and activations are rounded to nearest; only gradients may be rounded stochastically.
inline Quantization nearest(const Quantization& how) {
  return {how.granularity, how.scale, Rounding::kNearest, nullptr, 0};
}

constexpr bool is_tensor(const Quantization& how) {
  return how.granularity == Granularity::kTensor;
}

/// The kernels copy 16 bytes of int8 at a time; a view may start anywhere.
inline void require_aligned(const char* who, const char* name, const void* data) {
  require(reinterpret_cast<std::uintptr_t>(data) % kDepthAlign == 0, who, ": ", name,
          " must start at a multiple of ", kDepthAlign, " bytes");
}

/// A matrix quantised into the workspace, one scale per row of the result.
struct Int8Scratch {
  Int8Scratch(Arena& arena, int64_t rows, int64_t depth)
      : values(arena.take<int8_t>(rows * round_up(depth, kDepthAlign))),
        scale(arena.take<float>(rows)),
        absmax(arena.take<uint32_t>(rows)) {}
  int8_t* values;
  float* scale;
  uint32_t* absmax;
};

/// Float32 sums of several slices; nothing where one slice is enough.
inline float* take_slice_sum(Arena& arena, const std::vector<Slice>& slices, int64_t m, int64_t n) {
  return arena.take<float>(slices.size() > 1 ? m * n : 0);
}

/// The products of the slices. args: all but the output; panels go with the first slice.
std::vector<GemmArgs> slice_gemm(const GemmArgs& args, const std::vector<Slice>& slices);

/// Their sum into `out`; `sum` as above.
void gemm_slices(std::vector<GemmArgs> products, const OutputView& out, float* sum,
                 const Stream& stream);

/// out[i, j] = bias[j], or 0: what is left of a product whose K is empty.
void fill_rows(const OutputView& out, int64_t rows, int64_t cols, const float* bias,
               const Stream& stream);

}  // namespace int8tile::cuda
