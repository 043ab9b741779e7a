// The tile of a float matrix that one block turns into int8, and its transposed copy.
#pragma once

#include "arithmetic.cuh"
#include "element.cuh"
#include "launch.cuh"

namespace int8tile::cuda {

// One block takes 128 rows by 64 columns, a thread 4 rows by 8 columns.
constexpr int kTileRows = 128, kTileCols = 64, kTileThreads = 256;
constexpr int kThreadRows = 4;
constexpr int kThreadsAcross = kTileCols / kVector;
constexpr int kWordsDown = kTileRows / kThreadRows;  // 4 rows of a column fill a 32-bit word
static_assert(kThreadsAcross * kWordsDown == kTileThreads);

/// Bytes of a row of the int8 matrix and of its transpose, which the tiles cover.
struct TileExtent {
  int64_t row_bytes, column_bytes;
};

inline TileExtent tile_extent(const MatrixView& x) {
  return {round_up(x.cols, kDepthAlign), round_up(x.rows, kDepthAlign)};
}

/// One block per tile, neighbors across first. In one dimension, since the others end at 65,535.
inline dim3 tile_grid(const TileExtent& extent) {
  return dim3(static_cast<unsigned>(ceil_div(extent.row_bytes, kTileCols) *
                                    ceil_div(extent.column_bytes, kTileRows)));
}

/// What this thread takes of the matrix: rows [row, row + 4), columns [col, col + 8).
struct TilePlace {
  int across, down;              // place of the thread in the tile
  int64_t first_row, first_col;  // of the tile
  int64_t row, col;

  __device__ explicit TilePlace(const TileExtent& extent) {
    const auto tiles = static_cast<unsigned>((extent.row_bytes + kTileCols - 1) / kTileCols);
    across = static_cast<int>(threadIdx.x) % kThreadsAcross;
    down = static_cast<int>(threadIdx.x) / kThreadsAcross;
    first_row = static_cast<int64_t>(blockIdx.x / tiles) * kTileRows;
    first_col = static_cast<int64_t>(blockIdx.x % tiles) * kTileCols;
    row = first_row + down * kThreadRows;
    col = first_col + across * kVector;
  }
};

template <bool Stochastic>
__device__ inline int quantize_value(float value, float inv, uint32_t base, uint64_t index) {
  const float scaled = __fmul_rn(value, inv);
  if constexpr (Stochastic) return round_stochastic(scaled, base, index);
  return round_nearest(scaled, static_cast<float>(kInt8Max));
}

/// The tile with its columns as rows; padded against bank conflicts.
using TurnedTile = uint32_t[kTileCols][kWordsDown + 1];

/// Writes the tile's columns as rows of `to`. columns: this thread's 4 rows of each column.
__device__ inline void store_transposed(const TilePlace& at, const uint32_t (&columns)[kVector],
                                        TurnedTile& turned, int64_t cols, const TileExtent& extent,
                                        int8_t* to) {
#pragma unroll
  for (int c = 0; c < kVector; ++c) turned[at.across * kVector + c][at.down] = columns[c];
  __syncthreads();
  const int word = static_cast<int>(threadIdx.x) % kWarp;  // a warp writes 128 bytes of a column
  for (int c = static_cast<int>(threadIdx.x) / kWarp; c < kTileCols; c += kTileThreads / kWarp) {
    const int64_t column = at.first_col + c, row = at.first_row + word * kThreadRows;
    if (column < cols && row < extent.column_bytes)
      *reinterpret_cast<uint32_t*>(to + column * extent.column_bytes + row) = turned[c][word];
  }
}

}  // namespace int8tile::cuda
