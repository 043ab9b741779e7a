// Row maxima, then a choice among the rows of a block.
#include "tokens.hpp"

#include <algorithm>
#include <bit>

#include "int8tile/columns.hpp"
#include "int8tile/parallel.hpp"
#include "int8tile/plan.hpp"
#include "rows.hpp"

namespace int8tile {

OutlierTokens::OutlierTokens(int64_t m, const float* row_fold)
    : block(token_block(m)), fold(row_fold) {
  index.assign(static_cast<std::size_t>(round_up(token_slots(m), kDepthAlign)), 0);
  slot.assign(static_cast<std::size_t>(m), -1);
  regular_fold.assign(static_cast<std::size_t>(m), 1.0f);
  if (fold) std::copy_n(fold, m, regular_fold.begin());
}

void OutlierTokens::choose(int64_t first, uint32_t* absmax) {
  const int64_t rows = std::min(block, static_cast<int64_t>(slot.size()) - first);
  const int64_t first_slot = first / block * kTokensPerBlock;
  for (int64_t s = first_slot; s < first_slot + kTokensPerBlock; ++s) {
    const int64_t row = std::max_element(absmax, absmax + rows) - absmax;
    const auto token = static_cast<std::size_t>(first + row);
    index[static_cast<std::size_t>(s)] = static_cast<int32_t>(token);
    if (slot[token] >= 0) continue;  // a last block of fewer rows
    slot[token] = static_cast<int32_t>(s);
    regular_fold[token] = 0.0f;
    absmax[row] = 0;
  }
}

void folded_absmax(const MatrixView& g, const OutlierTokens& tokens, const Kernel& kernel,
                   int64_t first, int64_t rows, float* buffer, uint32_t* absmax) {
  constexpr uint32_t kAbsMask = 0x7fffffff;
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = load_row(kernel, g, first + r, buffer);
    const auto largest = std::bit_cast<float>(kernel.absmax_bits(row, nullptr, g.cols));
    absmax[r] = std::bit_cast<uint32_t>(largest * tokens.fold_of(first + r)) & kAbsMask;
  }
}

void choose_tokens(const MatrixView& g, OutlierTokens& tokens, const CpuFacts& cpu) {
  std::vector<uint32_t> absmax(static_cast<std::size_t>(g.rows));
  const int64_t parts = ceil_div(g.rows, kColumnBlock);
  std::vector<float> buffers(static_cast<std::size_t>(share_count(cpu.threads, parts) * g.cols));
  parallel_pass(cpu.threads, parts, /*backwards=*/false, [&](int64_t part, int thread) {
    const int64_t first = part * kColumnBlock;
    folded_absmax(g, tokens, *cpu.kernel, first, std::min(kColumnBlock, g.rows - first),
                  buffers.data() + thread * g.cols, absmax.data() + first);
  });
  for (int64_t first = 0; first < g.rows; first += tokens.block)
    tokens.choose(first, absmax.data() + first);
  tokens.chosen = true;
}

}  // namespace int8tile
