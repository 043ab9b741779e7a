// Absmax and sums of the columns of a float matrix, gathered while its rows pass by.
#pragma once

#include <memory>

#include "int8tile/isa.hpp"
#include "int8tile/types.hpp"

namespace int8tile {

struct OutlierTokens;

/// What is wanted of the columns of x[rows, cols].
struct ColumnStats {
  const float* fold = nullptr;  // [rows] multiplies x before the absmax (not the sum); null: ones
  bool finite_only = false;     // inf and NaN are skipped; else they give bits >= 0x7f800000
  uint32_t* absmax = nullptr;   // [cols] bits of max_i |x[i,j] * fold[i]|
  float* sum = nullptr;         // [cols] float32; null: not wanted
  /// Where it is given, outlier tokens are chosen in the same pass, unless they were before because
  /// their blocks are larger than kTokenBlock; `fold` is their regular_fold.
  OutlierTokens* tokens = nullptr;
  uint32_t* token_absmax = nullptr;  // [cols] bits, of them alone
};

/// Rows of a block are added by one thread and in order, and blocks in order at the end: a float32
/// sum is the same for any number of threads.
inline constexpr int64_t kColumnBlock = 48;
inline constexpr int kRowsAtOnce = 4;  // divides kColumnBlock

/// One pass over the rows of a matrix, whoever makes it.
class ColumnPass {
 public:
  ColumnPass(const ColumnStats& stats, const CpuFacts& cpu, int64_t rows, int64_t cols);
  ~ColumnPass();
  ColumnPass(const ColumnPass&) = delete;
  ColumnPass& operator=(const ColumnPass&) = delete;

  /// Before the first row of kTokenBlock rows, or those that are left, where there are tokens: by
  /// the thread that adds them. buffer // [cols]
  void begin(const MatrixView& x, int64_t first, int share, float* buffer) const;
  /// rows // [count][cols], the rows of x from row i on, at most kRowsAtOnce. Blocks may come in
  /// any order, the rows of a block in theirs. `share` < min(threads, blocks) is the caller's
  /// alone.
  void add(int64_t i, const float* const* rows, int count, int share) const;
  /// Writes stats.absmax and stats.sum, after all rows.
  void finish() const;

 private:
  struct Scratch;
  const ColumnStats& stats_;
  const CpuFacts& cpu_;
  int64_t cols_, blocks_;
  int shares_;
  std::unique_ptr<Scratch> scratch_;
};

/// A pass of its own.
void column_stats(const MatrixView& x, const ColumnStats& stats, const CpuFacts& cpu);

}  // namespace int8tile
