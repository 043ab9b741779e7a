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
  /// Where they are given, outlier tokens are chosen in the same pass, if they were not before;
  /// `fold` is their regular_fold.
  OutlierTokens* tokens = nullptr;
  uint32_t* token_absmax = nullptr;  // [cols] bits, of them alone
};

/// Rows that a pass with these statistics hands to a thread at a time.
int64_t rows_at_a_time(const ColumnStats& stats);

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

  /// Before the first of some rows, by the thread that adds them: whole blocks of tokens where
  /// these are not chosen yet, or the rows that are left. buffer // [cols]
  void begin(const MatrixView& x, int64_t first, int64_t rows, int share, float* buffer) const;
  /// rows // [count][cols], the rows of x from row i on, at most kRowsAtOnce. Blocks may come in
  /// any order, the rows of a block in theirs. `share` < min(threads, blocks) is the caller's
  /// alone.
  void add(int64_t i, const float* const* rows, int count, int share) const;
  /// Writes all results to stats, after all rows.
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
