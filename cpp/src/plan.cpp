// Blocking, slicing and the overflow bound. Planning never touches data.
#include "int8tile/plan.hpp"

#include <algorithm>

#include "int8tile/check.hpp"
#include "kernels/kernel.hpp"

namespace int8tile {
namespace {

constexpr int64_t kAccumulatorLimit = (int64_t{1} << 31) - 1;
constexpr int64_t kRegularProduct = 127 * 127;
constexpr int64_t kOutlierProduct = 16384 * 127;  // |high| * 128 + low, times a weight
// With outlier tokens both factors may be outliers, one in two limbs of -128..127 each.
constexpr int64_t kRegularToken = 127 * 128, kOutlierToken = 16384 * 128;

// With slices, the first one also holds the panels; the default capacity leaves it this deep.
constexpr int64_t kMinFirstSlice = kSliceDepth / 2;

// Measured: a panel of B need not fit L1, since L2 delivers its 21 bytes a cycle; past this depth
// the block of A would no longer fit L2.
constexpr int64_t kWholeDepth = 4096;
constexpr int64_t kDepthBlock = 2048;
constexpr int64_t kMinRows = 96, kMaxRows = 240;
constexpr int64_t kPanelsPerTask = 4;
constexpr int64_t kTasksPerThread = 8;

// Where float32 wins: the speed of a trained weight's forward in times that of float32, by
// `python bench/bench_linear.py --weights each --passes forward --candidates int8-split` on 2 cores
// of an Intel Xeon (Emerald Rapids), torch 2.13, 2026-11-24.
//
//   weight [n, k]  16 tokens    32    48    64    96   128
//   [384, 384]          0.44  0.59  0.73  0.76  0.88  1.02
//   [768, 768]          0.58  0.79  0.95  1.12  1.33  1.39
//   [3072, 768]         0.80  0.97  1.19  1.45  1.72  1.91
//   [768, 3072]         0.94  1.12  1.28  1.37  1.57  1.68
//   [2048, 2048]        0.80  1.10  1.37  1.40  1.73  1.94
//
// Forward and backward together break even at the same sizes or a little below.
constexpr int64_t kTrainedTokens = 32;
constexpr double kTrainedWork = 1 << 25;  // multiply-adds
// A frozen weight that stays packed (`--weights frozen`): 0.42 at [32, 256] x [256, 256], 0.94 at
// [64, 384] x [384, 384], 1.5 at [16, 768] x [768, 768]. From 1M weights on it is about 1 from the
// first token, where float32 waits for memory.
constexpr double kFrozenWork = 1 << 23;  // multiply-adds
constexpr double kLargeWeight = 1 << 20;
constexpr const char* kFloatWins = "float32 is expected to be as fast or faster";

std::string no_dot_product(const Kernel& kernel) {
  return concat("the ", kernel.name, " kernel has no int8 dot-product instruction");
}

int64_t most_outliers(int64_t depth) {
  return std::max<int64_t>(0, (kAccumulatorLimit - depth * kRegularProduct) / kOutlierProduct);
}

int64_t balanced(int64_t total, int64_t block, int64_t multiple) {
  if (total == 0) return multiple;
  return round_up(ceil_div(total, ceil_div(total, block)), multiple);
}

void plan_blocks(GemmPlan& plan) {
  const int64_t nr = plan.cpu.kernel->nr;
  const int64_t depth = std::min(plan.k_padded, kSliceDepth);
  plan.k_block = depth <= kWholeDepth ? std::max<int64_t>(depth, kDepthAlign)
                                      : balanced(depth, kDepthBlock, kDepthAlign);
  const int64_t l2 = plan.cpu.l2_bytes;
  const int64_t rows =
      (l2 * 9 / 10 - 2 * nr * plan.k_block) / std::max<int64_t>(depth, kDepthAlign);
  plan.m_block = balanced(plan.m, std::clamp(rows, kMinRows, kMaxRows), kTileRows);
  const int64_t m_blocks = ceil_div(plan.m, plan.m_block);
  const int64_t panels_per_block = kPanelsPerTask * std::max<int64_t>(1, 64 / nr);
  plan.n_block = panels_per_block * nr;
  const auto tasks = [&] { return m_blocks * ceil_div(plan.n, plan.n_block); };
  while (plan.n_block > nr && tasks() < kTasksPerThread * plan.cpu.threads) plan.n_block -= nr;
  plan.tasks = tasks();
  plan.threads =
      static_cast<int>(std::clamp<int64_t>(plan.tasks, 1, static_cast<int64_t>(plan.cpu.threads)));
  plan.stream = plan.m * plan.n > l2 / 4;
}

}  // namespace

int64_t token_block(int64_t m) {
  if (m > kSliceDepth) return 0;
  for (int64_t block = kTokenBlock;; block *= 2) {
    const int64_t slots = ceil_div(m, block) * kTokensPerBlock;
    if (m * kRegularToken + slots * kOutlierToken <= kAccumulatorLimit) return block;
    if (block >= m) return 0;
  }
}

int64_t token_slots(int64_t m) {
  const int64_t block = token_block(m);
  return block > 0 ? ceil_div(m, block) * kTokensPerBlock : 0;
}

std::vector<Slice> slice_depth(int64_t k, int64_t capacity) {
  if (k <= kSliceDepth) return {{0, k}};
  std::vector<Slice> slices;
  const int64_t room = (kAccumulatorLimit - capacity * kOutlierProduct) / kRegularProduct;
  const int64_t first = std::min(kSliceDepth, room / kDepthAlign * kDepthAlign);
  slices.push_back({0, first});
  for (int64_t begin = first; begin < k; begin += kSliceDepth)
    slices.push_back({begin, std::min(k, begin + kSliceDepth)});
  return slices;
}

int64_t default_capacity(int64_t k) {
  const int64_t wanted = std::min(k, round_up(ceil_div(k, 16), 32));
  return std::min(wanted, most_outliers(k <= kSliceDepth ? k : kMinFirstSlice));
}

GemmPlan plan_gemm(int64_t m, int64_t n, int64_t k, int64_t capacity, int outlier_bits,
                   const CpuFacts& cpu) {
  require(m >= 0 && n >= 0 && k >= 0, "int8tile::plan: m, n and k must not be negative; got ", m,
          ", ", n, ", ", k);
  require(std::max({m, n, k}) <= kMaxSize, "int8tile::plan: m, n and k must be at most ", kMaxSize,
          "; got ", m, ", ", n, ", ", k);
  require(outlier_bits >= kMinOutlierBits && outlier_bits <= kMaxOutlierBits,
          "int8tile::plan: outlier_bits must be ", kMinOutlierBits, "..", kMaxOutlierBits, "; got ",
          outlier_bits);
  require(capacity >= -1 && capacity <= k, "int8tile::plan: outlier_capacity must be 0..", k,
          " (the input features); got ", capacity);
  GemmPlan plan;
  plan.m = m, plan.n = n, plan.k = k;
  plan.capacity = capacity < 0 ? default_capacity(k) : capacity;
  plan.outlier_bits = outlier_bits;
  plan.cpu = cpu;
  const int64_t most = most_outliers(k <= kSliceDepth ? k : kDepthAlign);
  require(plan.capacity <= most, "int8tile::plan: outlier_capacity must be at most ", most,
          " so that sums over ", k, " features fit int32; got ", plan.capacity);
  plan.k_padded = round_up(k, kDepthAlign);
  plan.slices = slice_depth(k, plan.capacity);
  for (const Slice& slice : plan.slices) {
    const int64_t bound = (slice.end - slice.begin) * kRegularProduct +
                          (slice.begin == 0 ? plan.capacity * kOutlierProduct : 0);
    plan.accumulator_bound = std::max(plan.accumulator_bound, bound);
  }
  plan_blocks(plan);
  return plan;
}

std::string kernel_verdict(const Kernel& kernel) {
  return has_dot_product(kernel) ? "" : concat(kFloatWins, ": ", no_dot_product(kernel));
}

std::string GemmPlan::why_float(bool frozen) const {
  if (!has_dot_product(*cpu.kernel)) return no_dot_product(*cpu.kernel);
  const double weights = static_cast<double>(n) * static_cast<double>(k);
  const double work = static_cast<double>(m) * weights;
  if (m == 0 || (work < kFrozenWork && weights < kLargeWeight))
    return "the call's own overhead outweighs so small a product";
  if (frozen || (m >= kTrainedTokens && work >= kTrainedWork)) return {};
  return concat(
      "with ",
      m < kTrainedTokens ? concat("fewer than ", kTrainedTokens, " tokens") : "so small a product",
      ", quantizing the weight in every call costs more than int8 saves");
}

std::string GemmPlan::verdict() const {
  if (const std::string why = why_float(true); !why.empty()) return concat(kFloatWins, ": ", why);
  if (const std::string why = why_float(false); !why.empty())
    return concat(kFloatWins, " while the weight is trained: ", why,
                  "; where it is frozen, int8 is expected to be faster");
  return "int8 is expected to be faster than float32";
}

std::string GemmPlan::text(bool with_verdict) const {
  const int64_t panel = round_up(capacity, kGroup);
  std::ostringstream out;
  out << "out[" << m << ", " << n << "] = a[" << m << ", " << k << "] @ b[" << n << ", " << k
      << "].T\n";
  if (capacity > 0)
    out << "  segments     high limbs <= " << panel << " (shift " << kLimbBits << ") | "
        << (low_in_place() ? "low limbs in place" : concat("low limbs <= ", panel)) << " | regular "
        << k_padded << " (" << k_padded - k << " padding)\n"
        << "  outliers     capacity " << capacity << " columns of INT" << outlier_bits << '\n';
  else
    out << "  segments     regular " << k_padded << " (" << k_padded - k << " padding)\n"
        << "  outliers     none\n";
  out << "  kernel       " << cpu.kernel->name << ", tile " << kTileRows << " x " << cpu.kernel->nr
      << '\n'
      << "  blocks       m " << m_block << ", n " << n_block << ", k " << k_block << "; " << tasks
      << " tasks on " << threads << " threads\n"
      << "  slices of k  " << slices.size() << '\n'
      << "  accumulator  |acc| <= " << accumulator_bound << " = 2^31 * "
      << static_cast<double>(accumulator_bound) / 2147483648.0 << '\n'
      << "  workspace    " << workspace_bytes << " bytes";
  if (with_verdict) out << "\n  verdict      " << verdict();
  return out.str();
}

}  // namespace int8tile
