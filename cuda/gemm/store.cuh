// From accumulators in registers to the output matrix: 16-byte stores where its layout allows.
#pragma once

#include <cute/tensor.hpp>
#include <type_traits>

#include "gemm.cuh"

namespace int8tile::cuda {

/// Outputs [m, n] as the GEMM kernel writes them; epilogue is not used for int32.
template <class Out>
struct OutputTile {
  int m, n;
  Out* data;
  int64_t stride;
  bool aligned;  // rows start at multiples of 16 bytes and hold whole groups of 8
  Epilogue epilogue;
};

template <class Out>
OutputTile<Out> output_tile(const GemmArgs& args) {
  constexpr int64_t kGroup = 8;  // outputs that four lanes exchange
  const bool aligned = args.n % kGroup == 0 && args.out_stride % kGroup == 0 &&
                       reinterpret_cast<std::uintptr_t>(args.out) % kVectorBytes == 0;
  return {static_cast<int>(args.m),
          static_cast<int>(args.n),
          static_cast<Out*>(args.out),
          args.out_stride,
          aligned,
          args.epilogue};
}

/// 4 x 4 transpose of 32-bit words across the 4 lanes of a quad.
CUTE_DEVICE void quad_transpose(uint32_t (&words)[4]) {
  const int lane = threadIdx.x & 3;
  CUTE_UNROLL
  for (int step = 1; step <= 2; step <<= 1) {
    const bool upper = lane & step;
    CUTE_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (i & step) continue;
      const uint32_t give = upper ? words[i] : words[i | step];
      const uint32_t got = __shfl_xor_sync(0xffffffffu, give, step);
      if (upper)
        words[i] = got;
      else
        words[i | step] = got;
    }
  }
}

template <class Out>
CUTE_DEVICE void convert(int acc, float row, float col, float bias, const Epilogue& epilogue,
                         Out* to) {
  store_float(finish(acc, row, col, bias, epilogue), to);
}
CUTE_DEVICE void convert(int acc, float, float, float, const Epilogue&, int32_t* to) { *to = acc; }

/// Two neighbors in a row, at column n.
template <class Out>
CUTE_DEVICE void store_pair(const OutputTile<Out>& out, int m, int n, Out (&pair)[2]) {
  if (m >= out.m || n >= out.n) return;
  Out* to = out.data + m * out.stride + n;
  if constexpr (std::is_same_v<Out, float>) {
    if (out.epilogue.accumulate) {
      pair[0] = __fadd_rn(to[0], pair[0]);
      if (n + 1 < out.n) pair[1] = __fadd_rn(to[1], pair[1]);
    }
  }
  if (out.aligned && sizeof(Out) == 4) {
    *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(pair);
    return;
  }
  to[0] = pair[0];
  if (n + 1 < out.n) to[1] = pair[1];
}

/// The bits of two 2-byte outputs.
template <class Out>
CUTE_DEVICE uint32_t pack_pair(const Out (&pair)[2]) {
  return *reinterpret_cast<const uint32_t*>(pair);
}

/// A lane's four pairs, 8 columns apart, of row m: the quad writes 64 bytes. n is that of pair 0.
template <class Out>
CUTE_DEVICE void store_quad(const OutputTile<Out>& out, int m, int n, const Out (&pairs)[4][2]) {
  uint32_t words[4];
  CUTE_UNROLL
  for (int j = 0; j < 4; ++j) words[j] = pack_pair(pairs[j]);
  quad_transpose(words);
  const int lane = threadIdx.x & 3;
  const int column = n - 2 * lane + 8 * lane;
  if (m < out.m && column < out.n)
    *reinterpret_cast<uint4*>(out.data + m * out.stride + column) =
        make_uint4(words[0], words[1], words[2], words[3]);
}

/// acc and crd are (2 columns, rows, blocks of 8 columns); crd holds (m, n) of the whole output.
template <class Out, class Acc, class Crd>
CUTE_DEVICE void store_tile(const Acc& acc, const Crd& crd, const OutputTile<Out>& out) {
  using cute::get;
  using cute::size;
  static_assert(size<0>(Acc{}) == 2 && size<2>(Acc{}) % 4 == 0);
  constexpr bool kScaled = !std::is_same_v<Out, int32_t>;
  CUTE_UNROLL
  for (int b = 0; b < size<2>(acc); b += 4) {
    float col[4][2] = {}, bias[4][2] = {};
    CUTE_UNROLL
    for (int j = 0; j < 8; ++j) {
      const int n = get<1>(crd(j % 2, 0, b + j / 2));
      if (kScaled && n < out.n) {
        col[j / 2][j % 2] = col_scale_at(out.epilogue, n);
        bias[j / 2][j % 2] = bias_at(out.epilogue, n);
      }
    }
    CUTE_UNROLL
    for (int r = 0; r < size<1>(acc); ++r) {
      const int m = get<0>(crd(0, r, b)), n = get<1>(crd(0, r, b));
      const float row = kScaled && m < out.m ? row_scale_at(out.epilogue, m) : 0.0f;
      alignas(16) Out pairs[4][2];
      CUTE_UNROLL
      for (int j = 0; j < 8; ++j)
        convert(acc(j % 2, r, b + j / 2), row, col[j / 2][j % 2], bias[j / 2][j % 2], out.epilogue,
                &pairs[j / 2][j % 2]);
      if constexpr (sizeof(Out) == 2) {
        if (out.aligned) {  // the same for the whole grid: all lanes take part in the exchange
          store_quad(out, m, n, pairs);
          continue;
        }
      }
      CUTE_UNROLL
      for (int j = 0; j < 4; ++j) store_pair(out, m, n + 8 * j, pairs[j]);
    }
  }
}

}  // namespace int8tile::cuda
