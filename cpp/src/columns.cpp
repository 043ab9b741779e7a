// Column statistics: maxima per thread, sums per block of rows, joined at the end.
#include "int8tile/columns.hpp"

#include <algorithm>

#include "int8tile/memory.hpp"
#include "int8tile/parallel.hpp"
#include "int8tile/plan.hpp"
#include "rows.hpp"
#include "tokens.hpp"

namespace int8tile {
namespace {

struct Arrays {
  Arrays(Arena& arena, int threads, int64_t cols, int64_t sum_blocks, bool tokens)
      : stride(round_up(cols, 16)),
        largest(arena.take<uint32_t>(threads * stride)),
        token_largest(arena.take<uint32_t>(tokens ? threads * stride : 0)),
        sums(arena.take<float>(sum_blocks * stride)) {}
  int64_t stride;
  uint32_t *largest, *token_largest;
  float* sums;
};

constexpr float kOnes[kRowsAtOnce] = {1.0f, 1.0f, 1.0f, 1.0f};

struct RowBuffers {
  RowBuffers(Arena& arena, int threads, int64_t cols)
      : stride(round_up(cols, 16)), row(arena.take<float>(threads * kRowsAtOnce * stride)) {}
  int64_t stride;
  float* row;
};

}  // namespace

struct ColumnPass::Scratch {
  Workspace<Arrays> memory;
};

ColumnPass::ColumnPass(const ColumnStats& stats, const CpuFacts& cpu, int64_t rows, int64_t cols)
    : stats_(stats),
      cpu_(cpu),
      cols_(cols),
      blocks_(ceil_div(rows, kColumnBlock)),
      shares_(share_count(cpu.threads, blocks_)),
      scratch_(new Scratch{
          Workspace<Arrays>(shares_, cols, stats.sum ? blocks_ : 0, stats.tokens != nullptr)}) {
  const Arrays& at = scratch_->memory.at;
  std::fill_n(at.largest, shares_ * at.stride, 0u);
  if (stats.tokens) std::fill_n(at.token_largest, shares_ * at.stride, 0u);
}

ColumnPass::~ColumnPass() = default;

int64_t rows_at_a_time(const ColumnStats& stats) {
  return stats.tokens && !stats.tokens->chosen ? kTokenBlock : kColumnBlock;
}

void ColumnPass::begin(const MatrixView& x, int64_t first, int64_t rows, int share,
                       float* buffer) const {
  if (!stats_.tokens) return;
  const Arrays& at = scratch_->memory.at;
  OutlierTokens& tokens = *stats_.tokens;
  if (!tokens.chosen) {
    uint32_t absmax[kTokenBlock];
    folded_absmax(x, tokens, *cpu_.kernel, first, rows, buffer, absmax);
    tokens.choose(first, absmax);
  }
  for (int64_t i = first; i < first + rows; ++i) {
    if (tokens.slot[static_cast<std::size_t>(i)] < 0) continue;
    const float* row = load_row(*cpu_.kernel, x, i, buffer);
    const float factor = tokens.fold_of(i);
    cpu_.kernel->column_absmax(&row, &factor, 1, cols_, stats_.finite_only,
                               at.token_largest + share * at.stride);
  }
}

void ColumnPass::add(int64_t i, const float* const* rows, int count, int share) const {
  const Arrays& at = scratch_->memory.at;
  const float* fold = stats_.fold ? stats_.fold + i : kOnes;
  cpu_.kernel->column_absmax(rows, fold, count, cols_, stats_.finite_only,
                             at.largest + share * at.stride);
  if (!stats_.sum) return;
  float* sum = at.sums + i / kColumnBlock * at.stride;
  if (i % kColumnBlock == 0) std::fill_n(sum, cols_, 0.0f);
  for (int r = 0; r < count; ++r) cpu_.kernel->column_sum(rows[r], cols_, sum);
}

void ColumnPass::finish() const {
  const Arrays& at = scratch_->memory.at;
  const auto join = [&](const uint32_t* largest, uint32_t* absmax) {
    std::copy_n(largest, cols_, absmax);
    for (int t = 1; t < shares_; ++t)
      for (int64_t j = 0; j < cols_; ++j)
        absmax[j] = std::max(absmax[j], largest[t * at.stride + j]);
  };
  join(at.largest, stats_.absmax);
  if (stats_.tokens) join(at.token_largest, stats_.token_absmax);
  if (!stats_.sum) return;
  std::fill_n(stats_.sum, cols_, 0.0f);
  for (int64_t block = 0; block < blocks_; ++block)
    cpu_.kernel->column_sum(at.sums + block * at.stride, cols_, stats_.sum);
}

void column_stats(const MatrixView& x, const ColumnStats& stats, const CpuFacts& cpu) {
  const ColumnPass pass(stats, cpu, x.rows, x.cols);
  const int64_t block_rows = rows_at_a_time(stats);
  const int64_t blocks = ceil_div(x.rows, block_rows);
  const Workspace<RowBuffers> buffers(share_count(cpu.threads, blocks), x.cols);
  parallel_pass(cpu.threads, blocks, /*backwards=*/false, [&](int64_t block, int thread) {
    float* buffer = buffers.at.row + thread * kRowsAtOnce * buffers.at.stride;
    const int64_t end = std::min(x.rows, (block + 1) * block_rows);
    const int64_t first = block * block_rows;
    pass.begin(x, first, end - first, thread, buffer);
    for (int64_t i = first; i < end; i += kRowsAtOnce) {
      const float* rows[kRowsAtOnce];
      const auto count = static_cast<int>(std::min<int64_t>(kRowsAtOnce, end - i));
      for (int r = 0; r < count; ++r)
        rows[r] = load_row(*cpu.kernel, x, i + r, buffer + r * buffers.at.stride);
      pass.add(i, rows, count, thread);
    }
  });
  pass.finish();
}

}  // namespace int8tile
