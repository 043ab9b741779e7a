// Column statistics: maxima per thread, sums per block of rows, joined at the end.
#include "int8tile/columns.hpp"

#include <algorithm>

#include "int8tile/memory.hpp"
#include "int8tile/parallel.hpp"
#include "rows.hpp"

namespace int8tile {
namespace {

struct Arrays {
  Arrays(Arena& arena, int threads, int64_t cols, int64_t sum_blocks)
      : stride(round_up(cols, 16)),
        largest(arena.take<uint32_t>(threads * stride)),
        sums(arena.take<float>(sum_blocks * stride)) {}
  int64_t stride;
  uint32_t* largest;
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
      scratch_(new Scratch{Workspace<Arrays>(shares_, cols, stats.sum ? blocks_ : 0)}) {
  const Arrays& at = scratch_->memory.at;
  std::fill_n(at.largest, shares_ * at.stride, 0u);
}

ColumnPass::~ColumnPass() = default;

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
  std::copy_n(at.largest, cols_, stats_.absmax);
  for (int t = 1; t < shares_; ++t)
    for (int64_t j = 0; j < cols_; ++j)
      stats_.absmax[j] = std::max(stats_.absmax[j], at.largest[t * at.stride + j]);
  if (!stats_.sum) return;
  std::fill_n(stats_.sum, cols_, 0.0f);
  for (int64_t block = 0; block < blocks_; ++block)
    cpu_.kernel->column_sum(at.sums + block * at.stride, cols_, stats_.sum);
}

void column_stats(const MatrixView& x, const ColumnStats& stats, const CpuFacts& cpu) {
  const ColumnPass pass(stats, cpu, x.rows, x.cols);
  const int64_t blocks = ceil_div(x.rows, kColumnBlock);
  const Workspace<RowBuffers> buffers(share_count(cpu.threads, blocks), x.cols);
  parallel_pass(cpu.threads, blocks, /*backwards=*/false, [&](int64_t block, int thread) {
    float* buffer = buffers.at.row + thread * kRowsAtOnce * buffers.at.stride;
    const int64_t end = std::min(x.rows, (block + 1) * kColumnBlock);
    for (int64_t i = block * kColumnBlock; i < end; i += kRowsAtOnce) {
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
