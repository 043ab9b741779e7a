// What the hardware could do, and the GEMM on ready operands: the yardsticks of the benchmarks.
#pragma once

#include <cstdint>
#include <memory>

#include "int8tile/isa.hpp"

namespace int8tile {

/// Giga-operations per second (a multiply and an add are two) of the kernel's dot-product
/// instruction on registers alone, all threads together, measured for about `seconds`.
/// Throws UnsupportedError for the portable kernel, which has no such instruction.
double peak_gops(const CpuFacts& cpu, double seconds);

/// The same for one full register tile of depth `k` whose operands stay in the first-level cache.
double tile_gops(const CpuFacts& cpu, int64_t k, double seconds);

/// One GEMM with float32 epilogue on packed operands filled with random int8 values.
class PackedGemm {
 public:
  PackedGemm(int64_t m, int64_t n, int64_t k, int64_t outliers, const CpuFacts& cpu);
  ~PackedGemm();
  PackedGemm(PackedGemm&&) noexcept;
  void run();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace int8tile
