// Row maxima in parallel, then a choice among the few rows of a block.
#include "tokens.hpp"

#include <algorithm>
#include <bit>

#include "int8tile/parallel.hpp"
#include "int8tile/plan.hpp"
#include "int8tile/quantize.hpp"
#include "rows.hpp"

namespace int8tile {
namespace {

constexpr uint32_t kAbsMask = 0x7fffffff;

std::vector<uint32_t> row_maxima(const MatrixView& g, const float* fold, const CpuFacts& cpu) {
  std::vector<uint32_t> maxima(static_cast<std::size_t>(g.rows));
  const int64_t blocks = ceil_div(g.rows, kTokenBlock);
  std::vector<float> buffers(static_cast<std::size_t>(share_count(cpu.threads, blocks) * g.cols));
  parallel_for(cpu.threads, blocks, [&](int64_t block, int thread) {
    float* buffer = buffers.data() + thread * g.cols;
    const int64_t end = std::min(g.rows, (block + 1) * kTokenBlock);
    for (int64_t i = block * kTokenBlock; i < end; ++i) {
      const float* row = load_row(*cpu.kernel, g, i, buffer);
      const auto largest = std::bit_cast<float>(cpu.kernel->absmax_bits(row, nullptr, g.cols));
      const float folded = fold ? largest * fold[i] : largest;
      maxima[static_cast<std::size_t>(i)] = std::bit_cast<uint32_t>(folded) & kAbsMask;
    }
  });
  return maxima;
}

}  // namespace

OutlierTokens find_outlier_tokens(const MatrixView& g, const float* fold, const CpuFacts& cpu) {
  const int64_t block = token_block(g.rows);
  OutlierTokens tokens;
  tokens.slot.assign(static_cast<std::size_t>(g.rows), -1);
  if (block == 0) return tokens;
  std::vector<uint32_t> maxima = row_maxima(g, fold, cpu);
  for (int64_t begin = 0; begin < g.rows; begin += block) {
    const auto first = maxima.begin() + begin;
    const auto last = maxima.begin() + std::min(g.rows, begin + block);
    for (int64_t t = 0; t < kTokensPerBlock; ++t) {
      const auto token = std::max_element(first, last) - maxima.begin();
      tokens.index.push_back(static_cast<int32_t>(token));
      int32_t& slot = tokens.slot[static_cast<std::size_t>(token)];
      if (slot >= 0) continue;  // a last block of fewer rows
      slot = static_cast<int32_t>(tokens.index.size()) - 1;
      maxima[static_cast<std::size_t>(token)] = 0;
    }
  }
  return tokens;
}

std::vector<uint32_t> token_absmax(const MatrixView& g, const float* fold,
                                   const OutlierTokens& tokens, const CpuFacts& cpu) {
  std::vector<uint32_t> absmax(static_cast<std::size_t>(g.cols), 0);
  std::vector<float> buffer(static_cast<std::size_t>(g.cols));
  for (const int32_t token : tokens.index) {
    const float* row = load_row(*cpu.kernel, g, token, buffer.data());
    const float factor = fold ? fold[token] : 1.0f;
    cpu.kernel->column_absmax(&row, &factor, 1, g.cols, /*finite_only=*/false, absmax.data());
  }
  return absmax;
}

}  // namespace int8tile
