// One warp chooses the outlier tokens of a block of rows.
#include "arithmetic.cuh"
#include "int8tile/plan.hpp"
#include "launch.cuh"
#include "tokens.cuh"

namespace int8tile::cuda {
namespace {

constexpr uint32_t kNobody = 0xffffffff;

/// The row of a warp's largest key, the first of equal ones; kNobody where no lane has one.
__device__ uint32_t first_largest(uint32_t key, uint32_t row) {
  const uint32_t largest = __reduce_max_sync(kAllLanes, key);
  // Keys are above 0 where there is a row; inverted, the first row is the largest.
  return ~__reduce_max_sync(kAllLanes, key == largest && key > 0 ? ~row : 0u);
}

/// The largest rows that a lane has seen, the largest first, of equal ones the first.
struct LargestRows {
  uint32_t key[kTokensPerBlock] = {};
  uint32_t row[kTokensPerBlock] = {kNobody, kNobody, kNobody, kNobody};

  __device__ void add(uint32_t new_key, uint32_t new_row) {
    bool shift = false;
#pragma unroll
    for (int t = 0; t < kTokensPerBlock; ++t) {
      shift = shift || new_key > key[t];
      if (!shift) continue;
      const uint32_t next_key = key[t], next_row = row[t];
      key[t] = new_key, row[t] = new_row;
      new_key = next_key, new_row = next_row;
    }
  }
  __device__ void drop_first() {
#pragma unroll
    for (int t = 0; t + 1 < kTokensPerBlock; ++t) key[t] = key[t + 1], row[t] = row[t + 1];
    key[kTokensPerBlock - 1] = 0;
  }
};
static_assert(kTokensPerBlock == 4);

__global__ void choose_tokens_kernel(const uint32_t* row_absmax, const float* fold, int64_t rows,
                                     int64_t block, OutlierTokens tokens) {
  const int64_t begin = blockIdx.x * block;
  const int64_t end = begin + block < rows ? begin + block : rows;
  LargestRows own;
#pragma unroll 4
  for (int64_t i = begin + threadIdx.x; i < end; i += kWarp) {
    const float largest = __uint_as_float(row_absmax[i]);
    const uint32_t key = abs_bits(fold ? __fmul_rn(largest, fold[i]) : largest) + 1;
    own.add(key, static_cast<uint32_t>(i));
  }
  uint32_t chosen[kTokensPerBlock];
#pragma unroll
  for (int t = 0; t < kTokensPerBlock; ++t) {
    chosen[t] = first_largest(own.key[0], own.row[0]);
    if (own.key[0] > 0 && own.row[0] == chosen[t]) own.drop_first();
  }
  for (int64_t i = begin + threadIdx.x; i < end; i += kWarp) tokens.slot[i] = -1;
  const int64_t first_slot = blockIdx.x * int64_t{kTokensPerBlock};
  for (int t = 0; t < kTokensPerBlock; ++t) {
    const bool found = chosen[t] != kNobody;
    if (found && (chosen[t] - begin) % kWarp == threadIdx.x)  // the lane that wrote -1
      tokens.slot[chosen[t]] = static_cast<int32_t>(first_slot + t);
    if (threadIdx.x == 0)
      tokens.index[first_slot + t] = static_cast<int32_t>(found ? chosen[t] : begin);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *tokens.count = static_cast<int32_t>(tokens.slots);
}

}  // namespace

void choose_tokens(const uint32_t* row_absmax, const float* fold, int64_t rows,
                   const OutlierTokens& tokens, const Stream& stream) {
  if (tokens.slots == 0) return;
  const auto blocks = static_cast<unsigned>(tokens.slots / kTokensPerBlock);
  launch(stream, choose_tokens_kernel, dim3(blocks), dim3(kWarp), 0, row_absmax, fold, rows,
         token_block(rows), tokens);
}

}  // namespace int8tile::cuda
