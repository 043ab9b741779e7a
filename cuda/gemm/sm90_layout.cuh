// How the sm_90 GEMM spreads its work over clusters, threads and shared memory; host code can walk
// it too.
#pragma once

#include <cute/tensor.hpp>
#include <cutlass/pipeline/sm90_pipeline.hpp>

#include "gemm.cuh"
#include "segments.cuh"

namespace int8tile::cuda {

using namespace cute;

/// What one cluster computes at a time: its blocks take neighboring tiles along m, from m0 on.
struct Unit {
  int m0, n0;
};

/// A warpgroup multiplies 64 rows of the tile. `Cluster` blocks, neighbors along m, take tiles of
/// the same columns: each loads its part of B for all of them.
template <int TileM, int TileN, int Cluster>
struct Sm90Layout {
  static constexpr int kTileM = TileM, kTileN = TileN, kCluster = Cluster;
  static constexpr int kDepth = 128;  // bytes of K in a tile: what the 128-byte swizzle spans
  static constexpr int kSteps = kDepth / kMmaDepth;
  static constexpr int kStages = 4;
  static constexpr int kGroupThreads = 128;  // of a warpgroup
  static constexpr int kConsumerThreads = TileM / 64 * kGroupThreads;
  static constexpr int kThreads = kGroupThreads + kConsumerThreads;  // the producers come first
  static constexpr int kBlocks = TileM == 64 ? 2 : 1;                // on a multiprocessor
  // Registers of a thread after the producers gave theirs up; 0: nobody needs more.
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = TileM == 64 ? 0 : 232;

  using Atom = conditional_t<TileN == 256, SM90::GMMA::MMA_64x256x32_S32S8S8_SS_TN,
                             SM90::GMMA::MMA_64x128x32_S32S8S8_SS_TN>;
  using Mma = TiledMMA<MMA_Atom<Atom>, Layout<Shape<Int<TileM / 64>, _1, _1>>>;
  using Swizzled = SM90::GMMA::Layout_K_SW128_Atom<int8_t>;
  using SharedA =
      decltype(tile_to_shape(Swizzled{}, Shape<Int<TileM>, Int<kDepth>, Int<kStages>>{}));
  using SharedB =
      decltype(tile_to_shape(Swizzled{}, Shape<Int<TileN>, Int<kDepth>, Int<kStages>>{}));

  // Rows that one TMA instruction copies, and the bytes of all copies into a stage of one block.
  static constexpr int kBoxA = TileM, kBoxB = TileN / Cluster;
  static constexpr int kStageBytes = (kBoxA + Cluster * kBoxB) * kDepth;
  /// First row of A and of B that the block `rank` copies.
  CUTE_HOST_DEVICE static constexpr int row_a(const Unit& unit, int rank) {
    return unit.m0 + rank * TileM;
  }
  CUTE_HOST_DEVICE static constexpr int row_b(const Unit& unit, int rank) {
    return unit.n0 + rank * kBoxB;
  }
  /// Where they go in Shared::a and Shared::b.
  CUTE_HOST_DEVICE static constexpr int a_at(int stage) { return stage * TileM * kDepth; }
  CUTE_HOST_DEVICE static constexpr int b_at(int stage, int rank) {
    return (stage * TileN + rank * kBoxB) * kDepth;
  }

  using Pipeline = cutlass::PipelineTmaAsync<kStages>;
  struct Shared {
    alignas(1024) int8_t a[cosize_v<SharedA>];  // the swizzle counts from multiples of 1024
    alignas(1024) int8_t b[cosize_v<SharedB>];
    typename Pipeline::SharedStorage pipeline;
  };
};

using Sm90LargeTile = Sm90Layout<kLargeTile.m, kLargeTile.n, 2>;
using Sm90SmallTile = Sm90Layout<kSmallTile.m, kSmallTile.n, 1>;

/// wgmma outruns the L2 cache on small tiles, which read three times as many bytes for a product.
/// So a quarter of the multiprocessors busy with large ones is enough (from data sheets, not
/// timed).
constexpr bool large_tile_pays(int64_t m, int64_t n, int multiprocessors) {
  const int64_t tiles = ceil_div(m, kLargeTile.m) * ceil_div(n, kLargeTile.n);
  return m > kLargeTile.m && 4 * tiles >= multiprocessors;
}

/// A thread's accumulators as (2 columns, rows, blocks of 8 columns).
template <class Accumulators>
CUTE_HOST_DEVICE auto wgmma_pairs(const Accumulators& layout) {
  return make_layout(get<0, 0>(layout), make_layout(get<0, 1>(layout), get<1>(layout)),
                     make_layout(get<0, 2>(layout), get<2>(layout)));
}

/// The tiles of a whole GEMM, in units; the same for the producer and the consumers of a cluster.
struct TileGrid {
  int units_m, tiles_n;
  int unit_rows, tile_cols;

  template <class L>
  __host__ __device__ static TileGrid make(int m, int n) {
    constexpr int kRows = L::kTileM * L::kCluster;
    return {(m + kRows - 1) / kRows, (n + L::kTileN - 1) / L::kTileN, kRows, L::kTileN};
  }

  __host__ __device__ int units() const { return units_m * tiles_n; }

  /// Units that run at the same time lie in a band of rows and share operands in the L2 cache.
  __host__ __device__ Unit at(int unit) const {
    constexpr int kBand = 8;  // units along m
    const int first = unit / (kBand * tiles_n) * kBand;
    const int band = units_m - first < kBand ? units_m - first : kBand;
    const int within = unit - first * tiles_n;
    return {(first + within % band) * unit_rows, within / band * tile_cols};
  }
};

}  // namespace int8tile::cuda
