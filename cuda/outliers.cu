// Column absmax and sums in one read, and the choice of outlier columns by one block.
#include <algorithm>
#include <bit>

#include "arithmetic.cuh"
#include "element.cuh"
#include "launch.cuh"
#include "outliers.cuh"

namespace int8tile::cuda {
namespace {

constexpr int kColumnThreads = 128;
constexpr int kSumThreads = 64;         // few, since columns alone share out this work
constexpr int64_t kMaxRowBlocks = 256;  // thread blocks that share the rows of a strip of columns

/// The largest value of the warp joins *to.
__device__ void join_warp(uint32_t value, uint32_t* to) {
  value = __reduce_max_sync(kAllLanes, value);
  if (threadIdx.x % kWarp == 0 && value > 0) atomicMax(to, value);
}

/// The largest of a thread's columns from `j` on join those of `to`, or all the first.
__device__ void join_columns(const uint32_t (&largest)[kVector], int64_t j, int64_t cols,
                             bool tensor, uint32_t* to) {
  if (tensor) {
    uint32_t all = 0;  // a column that does not exist has no absmax, whatever the fold
    for (int c = 0; c < kVector && j + c < cols; ++c) all = largest[c] > all ? largest[c] : all;
    return join_warp(all, to);
  }
  for (int c = 0; c < kVector && j + c < cols; ++c)
    if (largest[c] > 0) atomicMax(to + j + c, largest[c]);
}

// Threads beyond the last column stay, for the exchange within their warp; they read zeros.
template <class T, bool Rows, bool Tokens>
__global__ __launch_bounds__(kColumnThreads, 4) void column_stats_kernel(View<T> x,
                                                                         ColumnStats stats) {
  if (skipped(stats.wanted)) return;
  const int64_t j = linear_index() * kVector;
  uint32_t largest[kVector] = {}, token[kVector] = {};
  const int64_t blocks = (x.rows + kColumnBlock - 1) / kColumnBlock;
  for (int64_t block = blockIdx.y; block < blocks; block += gridDim.y) {
    float sum[kVector] = {};
    const int64_t begin = block * kColumnBlock;
    const int64_t end = begin + kColumnBlock < x.rows ? begin + kColumnBlock : x.rows;
#pragma unroll 4
    for (int64_t i = begin; i < end; ++i) {
      float values[kVector];
      x.load(i, j, values);
      const float fold = stats.fold ? stats.fold[i] : 1.0f;
      const bool apart = Tokens && stats.token_slot[i] >= 0;
      uint32_t row = 0;
#pragma unroll
      for (int c = 0; c < kVector; ++c) {
        sum[c] = __fadd_rn(sum[c], values[c]);
        const uint32_t bits = abs_bits(__fmul_rn(values[c], fold));
        if (apart)
          token[c] = bits > token[c] ? bits : token[c];
        else if (bits > largest[c] && !(stats.finite_only && bits >= kInfBits))
          largest[c] = bits;
        if constexpr (Rows) row = abs_bits(values[c]) > row ? abs_bits(values[c]) : row;
      }
      if constexpr (Rows) join_warp(row, stats.row_absmax + i);
    }
    if (stats.block_sums)
      for (int c = 0; c < kVector && j + c < x.cols; ++c)
        stats.block_sums[block * x.cols + j + c] = sum[c];
  }
  join_columns(largest, j, x.cols, stats.tensor, stats.absmax);
  if constexpr (Tokens) join_columns(token, j, x.cols, stats.tensor, stats.token_absmax);
}

__global__ void add_blocks(const float* block_sums, int64_t blocks, int64_t cols, float* sum) {
  const int64_t j = linear_index();
  if (j >= cols) return;
  float total = 0.0f;
#pragma unroll 16  // the sums depend on each other, the loads do not
  for (int64_t block = 0; block < blocks; ++block)
    total = __fadd_rn(total, block_sums[block * cols + j]);
  sum[j] = total;
}

}  // namespace

void column_stats(const MatrixView& x, const ColumnStats& stats, const Stream& stream) {
  if (x.cols == 0) return;
  fill_zero(stats.absmax, (stats.tensor ? 1 : x.cols) * 4, stream);
  if (stats.row_absmax) fill_zero(stats.row_absmax, x.rows * 4, stream);
  if (stats.token_slot) fill_zero(stats.token_absmax, (stats.tensor ? 1 : x.cols) * 4, stream);
  const int64_t blocks = ceil_div(x.rows, kColumnBlock);
  if (blocks > 0)
    with_dtype(x.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      const dim3 grid(static_cast<unsigned>(ceil_div(x.cols, kColumnThreads * kVector)),
                      static_cast<unsigned>(std::min(blocks, kMaxRowBlocks)));
      const auto kernel = stats.token_slot   ? column_stats_kernel<T, false, true>
                          : stats.row_absmax ? column_stats_kernel<T, true, false>
                                             : column_stats_kernel<T, false, false>;
      launch(stream, kernel, grid, dim3(kColumnThreads), 0, view_as<T>(x), stats);
    });
  if (stats.sum)
    launch(stream, add_blocks, dim3(static_cast<unsigned>(ceil_div(x.cols, kSumThreads))),
           dim3(kSumThreads), 0, stats.block_sums, blocks, x.cols, stats.sum);
}

namespace {

constexpr int kChooseThreads = 1024;
constexpr int kChooseWarps = kChooseThreads / kWarp;
constexpr int kTopKeyBit = 30;  // of the bits of a finite float without its sign

/// The sum over the block of each thread's value.
__device__ int block_total(int value, int* cell) {
  __syncthreads();
  if (threadIdx.x == 0) *cell = 0;
  __syncthreads();
  if (value > 0) atomicAdd(cell, value);
  __syncthreads();
  return *cell;
}

/// How many threads before this one hold a flag; `total` counts those of the block.
__device__ int block_rank(bool flag, int* warp_totals, int& total) {
  const unsigned votes = __ballot_sync(kAllLanes, flag);
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  __syncthreads();
  if (lane == 0) warp_totals[warp] = __popc(votes);
  __syncthreads();
  int before = 0;
  total = 0;
  for (unsigned w = 0; w < kChooseWarps; ++w) {
    if (w == warp) before = total;
    total += warp_totals[w];
  }
  return before + __popc(votes & ((1u << lane) - 1));
}

__device__ int count_above(const uint32_t* keys, int64_t cols, uint32_t limit, int* cell) {
  int above = 0;
  for (int64_t j = threadIdx.x; j < cols; j += blockDim.x) above += keys[j] > limit;
  return block_total(above, cell);
}

/// The `nth` largest key, found bit by bit from the top.
__device__ uint32_t nth_largest(const uint32_t* keys, int64_t cols, int nth, int* cell) {
  uint32_t key = 0;
  for (int bit = kTopKeyBit; bit >= 0; --bit) {
    const uint32_t trial = key | 1u << bit;
    if (count_above(keys, cols, trial - 1, cell) >= nth) key = trial;
  }
  return key;
}

__global__ __launch_bounds__(kChooseThreads) void choose_kernel(const uint32_t* keys, int64_t cols,
                                                                uint32_t threshold, int capacity,
                                                                int32_t* index, int32_t* slot,
                                                                int32_t* count) {
  __shared__ int warp_totals[kChooseWarps];
  __shared__ int cell;
  const int above = count_above(keys, cols, threshold, &cell);
  uint32_t limit = threshold;
  int ties = 0;  // columns whose key is `limit` that there is still room for
  if (above > capacity) {
    limit = nth_largest(keys, cols, capacity, &cell);
    ties = capacity - count_above(keys, cols, limit, &cell);
  }
  int taken = 0, equal = 0;
  for (int64_t base = 0; base < cols; base += blockDim.x) {
    const int64_t j = base + threadIdx.x;
    const bool inside = j < cols;
    const uint32_t key = inside ? keys[j] : 0;
    const bool same = inside && key == limit && ties > 0;
    int same_total = 0, take_total = 0;
    const int same_rank = block_rank(same, warp_totals, same_total);
    const bool take = inside && (key > limit || (same && equal + same_rank < ties));
    const int place = taken + block_rank(take, warp_totals, take_total);
    if (inside) slot[j] = take ? place : -1;
    if (take) index[place] = static_cast<int32_t>(j);
    taken += take_total;
    equal += same_total;
  }
  for (int t = taken + static_cast<int>(threadIdx.x); t < capacity; t += blockDim.x) index[t] = -1;
  if (threadIdx.x == 0) {
    count[0] = taken;
    count[1] = above - taken;
  }
}

}  // namespace

void choose_columns(const uint32_t* absmax, int64_t cols, const SplitSpec& split, int32_t* index,
                    int32_t* slot, int32_t* count, const Stream& stream) {
  // Bits of non-negative floats order like the floats.
  const auto threshold = std::bit_cast<uint32_t>(split.threshold);
  launch(stream, choose_kernel, dim3(1), dim3(kChooseThreads), 0, absmax, cols, threshold,
         static_cast<int>(split.capacity), index, slot, count);
}

}  // namespace int8tile::cuda
