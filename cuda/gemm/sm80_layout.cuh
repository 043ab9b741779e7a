// How the sm_80 GEMM spreads a tile over threads and shared memory; host code can walk it too.
#pragma once

#include <cute/tensor.hpp>

namespace int8tile::cuda {

using namespace cute;

/// TileM is a multiple of 64, TileN of 128; eight warps, two along m and four along n.
template <int TileM, int TileN>
struct Sm80Layout {
  static constexpr int kDepth = 64;  // bytes of K in a tile
  static constexpr int kStages = 4;
  static constexpr int kThreads = 256;
  // A warp owns four neighboring blocks of 8 columns, so that a quad can write 64 bytes of a row.
  using Mma = TiledMMA<MMA_Atom<SM80_16x8x32_S32S8S8S32_TN>, Layout<Shape<_2, _4, _1>>,
                       Tile<_32, Layout<Shape<_8, _4, _4>, Stride<_1, _32, _8>>, _32>>;
  using Swizzled =
      decltype(composition(Swizzle<2, 4, 3>{}, Layout<Shape<_8, _64>, Stride<_64, _1>>{}));
  using SharedA =
      decltype(tile_to_shape(Swizzled{}, Shape<Int<TileM>, Int<kDepth>, Int<kStages>>{}));
  using SharedB =
      decltype(tile_to_shape(Swizzled{}, Shape<Int<TileN>, Int<kDepth>, Int<kStages>>{}));
  using CopyAtom = Copy_Atom<SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<uint128_t>, int8_t>;
  using ThreadsOfCopy = Layout<Shape<_64, _4>, Stride<_4, _1>>;
  using ToShared = decltype(make_tiled_copy(CopyAtom{}, ThreadsOfCopy{}, Layout<Shape<_1, _16>>{}));
  using ToRegisters = Copy_Atom<SM75_U32x4_LDSM_N, int8_t>;
  static constexpr int kSharedBytes = cosize_v<SharedA> + cosize_v<SharedB>;
};

/// A thread's accumulators as (2 columns, rows, blocks of 8 columns).
template <class Accumulators>
CUTE_HOST_DEVICE auto by_pairs(const Accumulators& layout) {
  return make_layout(get<0, 0>(layout), make_layout(get<0, 1>(layout), get<1>(layout)),
                     get<2>(layout));
}

}  // namespace int8tile::cuda
