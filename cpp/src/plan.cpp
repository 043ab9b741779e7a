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

// With slices, the first one also holds the panels; the default capacity leaves it this deep.
constexpr int64_t kMinFirstSlice = kSliceDepth / 2;

// Measured: a panel of B need not fit L1, since L2 delivers its 21 bytes a cycle; past this depth
// the block of A would no longer fit L2.
constexpr int64_t kWholeDepth = 4096;
constexpr int64_t kDepthBlock = 2048;
constexpr int64_t kMinRows = 96, kMaxRows = 240;
constexpr int64_t kPanelsPerTask = 4;
constexpr int64_t kTasksPerThread = 8;

int64_t most_outliers(int64_t depth) {
  return std::max<int64_t>(0, (kAccumulatorLimit - depth * kRegularProduct) / kOutlierProduct);
}

int64_t balanced(int64_t total, int64_t block, int64_t multiple) {
  if (total == 0) return multiple;
  return round_up(ceil_div(total, ceil_div(total, block)), multiple);
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
  plan.stream = plan.m * plan.n * 4 > l2;
}

}  // namespace

int64_t default_capacity(int64_t k) {
  const int64_t wanted = std::min(k, round_up(ceil_div(k, 16), 32));
  return std::min(wanted, most_outliers(k <= kSliceDepth ? k : kMinFirstSlice));
}

GemmPlan plan_gemm(int64_t m, int64_t n, int64_t k, int64_t capacity, int outlier_bits,
                   const CpuFacts& cpu) {
  require(m >= 0 && n >= 0 && k >= 0, "int8tile::plan: m, n and k must not be negative; got ", m,
          ", ", n, ", ", k);
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

std::string GemmPlan::text() const {
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
  return out.str();
}

}  // namespace int8tile
