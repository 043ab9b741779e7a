// The planner: from shapes and machine facts alone, how one segmented GEMM will run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "int8tile/isa.hpp"
#include "int8tile/types.hpp"

namespace int8tile {

/// A range of K whose sum is exact in int32; its dequantised result is added in float32.
struct Slice {
  int64_t begin = 0;
  int64_t end = 0;
};

/// out[m,n] = a[m,k] @ b[n,k].T with up to `capacity` outlier columns of a held as two int8 limbs.
///
/// K is laid out as `[high limbs | low limbs | regular]`; the accumulator is shifted left by 7
/// after the high limbs. On CPUs the low limbs sit at their own columns of the regular segment
/// (the integers are the same), unless K is sliced.
struct GemmPlan {
  int64_t m = 0, n = 0, k = 0;
  int64_t capacity = 0;  // outlier columns the panels can hold
  int outlier_bits = 12;

  CpuFacts cpu;
  int64_t k_padded = 0;  // k rounded up to whole turns of the inner loop
  int64_t m_block = 0, n_block = 0, k_block = 0;
  int64_t tasks = 0;    // m blocks x n blocks, handed to threads one by one
  int threads = 1;      // threads that have work
  bool stream = false;  // a float32 output larger than L2 is written past the caches
  std::vector<Slice> slices;
  // No |accumulator| exceeds this, but for outlier tokens; always below 2^31.
  int64_t accumulator_bound = 0;
  int64_t workspace_bytes = 0;  // packed operands, scales and scratch of one call

  bool low_in_place() const { return slices.size() <= 1; }
  /// Whether int8 or float32 is expected to be faster, and why. The plan is taken for the forward
  /// product of a layer: m tokens, and b the weight, which is quantised in every call if trained.
  std::string verdict() const;
  /// Why float32 is expected to be as fast, for a weight of one kind; empty where int8 is faster.
  std::string why_float(bool frozen) const;
  /// The plan in lines; without the verdict for a product that is not a layer's forward.
  std::string text(bool with_verdict = true) const;
};

/// The most rows or columns of a matrix, so that sizes in bytes fit int64 and columns int32.
inline constexpr int64_t kMaxSize = int64_t{1} << 30;

/// The deepest K whose int8 products always fit int32, a power of two.
inline constexpr int64_t kSliceDepth = 131072;

inline constexpr int64_t kTokenBlock = 96;     // rows of the smallest block
inline constexpr int64_t kTokensPerBlock = 4;  // outlier tokens of a block, one group of K

/// Rows of a block, of which the largest kTokensPerBlock are outlier tokens of a gradient:
/// kTokenBlock, or twice that and so on until sums over `m` tokens fit int32 in one slice. 0: there
/// are no outlier tokens.
int64_t token_block(int64_t m);
/// Places for them: kTokensPerBlock for each block.
int64_t token_slots(int64_t m);

/// Why float32 is expected to be as fast with this kernel, whatever the shape; empty where it has a
/// dot-product instruction.
std::string kernel_verdict(const Kernel& kernel);

/// The outlier capacity used where none is given: min(k, k/16 rounded up to 32), lowered where the
/// accumulator could overflow.
int64_t default_capacity(int64_t k);

/// The ranges of K whose sums fit int32; the first leaves room for `capacity` outlier columns.
std::vector<Slice> slice_depth(int64_t k, int64_t capacity);

/// Plans one GEMM. `capacity` -1 means default_capacity(k). Throws std::invalid_argument for
/// negative sizes, bits outside 8..15, or a capacity that is outside 0..k or cannot fit int32.
GemmPlan plan_gemm(int64_t m, int64_t n, int64_t k, int64_t capacity, int outlier_bits,
                   const CpuFacts& cpu);

}  // namespace int8tile
