// Peak probes and the ready-operand GEMM.
#include "int8tile/probe.hpp"

#include <chrono>
#include <random>
#include <vector>

#include "int8tile/check.hpp"
#include "int8tile/gemm.hpp"
#include "int8tile/memory.hpp"
#include "int8tile/parallel.hpp"
#include "kernels/kernel.hpp"

namespace int8tile {
namespace {

// Repeats `work` (which returns the operations it did) on every thread until `seconds` are over.
template <class Work>
double rate(int threads, double seconds, const Work& work) {
  using Clock = std::chrono::steady_clock;
  struct Sum {
    double gops = 0.0;
    int runs = 0;
  };
  std::vector<Sum> sums(static_cast<std::size_t>(threads));
  parallel_for(threads, threads, [&](int64_t, int thread) {
    double operations = 0.0, elapsed = 0.0;
    const auto start = Clock::now();
    do {
      operations += static_cast<double>(work());
      elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    } while (elapsed < seconds);
    Sum& sum = sums[static_cast<std::size_t>(thread)];
    sum.gops += operations / elapsed * 1e-9;
    ++sum.runs;  // more than one where fewer threads came than were asked for
  });
  double total = 0.0;
  for (const Sum& sum : sums)
    if (sum.runs > 0) total += sum.gops / sum.runs;
  return total;
}

void fill_random(uint8_t* data, int64_t count, std::mt19937& random) {
  for (int64_t i = 0; i < count; ++i) data[i] = static_cast<uint8_t>(random() >> 8);
}

struct Operands {
  Operands(Arena& arena, const GemmPlan& plan)
      : a(arena.take<int8_t>(plan.m * plan.k_padded)),
        a_high(arena.take<int8_t>(plan.m * round_up(plan.capacity, kGroup))),
        b(arena.take<uint8_t>(round_up(plan.n, plan.cpu.kernel->nr) * plan.k_padded)),
        b_high(arena.take<uint8_t>(round_up(plan.n, plan.cpu.kernel->nr) *
                                   round_up(plan.capacity, kGroup))),
        compensation(arena.take<int32_t>(plan.m)),
        row_scale(arena.take<float>(plan.m)),
        col_scale(arena.take<float>(plan.n)),
        bias(arena.take<float>(plan.n)),
        out(arena.take<float>(plan.m * plan.n)) {}
  int8_t *a, *a_high;
  uint8_t *b, *b_high;
  int32_t* compensation;
  float *row_scale, *col_scale, *bias, *out;
};

}  // namespace

double peak_gops(const CpuFacts& cpu, double seconds) {
  if (!cpu.kernel->peak)
    throw UnsupportedError(concat("int8tile::peak_gops: the ", cpu.kernel->name,
                                  " kernel has no dot-product instruction to probe"));
  return rate(cpu.threads, seconds, [&] { return cpu.kernel->peak(100000); });
}

double tile_gops(const CpuFacts& cpu, int64_t k, double seconds) {
  require(k > 0 && k % kDepthAlign == 0 && k <= kSliceDepth,
          "int8tile::tile_gops: k must be a positive multiple of ", kDepthAlign, " up to ",
          kSliceDepth, "; got ", k);
  const int nr = cpu.kernel->nr;
  return rate(cpu.threads, seconds, [&] {
    thread_local std::vector<int8_t> a;
    thread_local std::vector<uint8_t> b;
    thread_local std::vector<float> scales(1024, 0.5f), out(1024);
    thread_local std::vector<int32_t> compensation(kTileRows, 0);
    a.resize(static_cast<std::size_t>(kTileRows * k));
    b.resize(static_cast<std::size_t>(nr * k));
    Tile tile{};
    tile.a = a.data(), tile.b = b.data(), tile.groups = k / kGroup;
    tile.rows = kTileRows, tile.cols = nr;
    tile.compensation = compensation.data();
    tile.out = out.data(), tile.out_stride = nr;
    tile.row_scale = scales.data(), tile.col_scale = scales.data();
    tile.prefetch = reinterpret_cast<const char*>(b.data());
    constexpr int kRepeats = 200;
    for (int i = 0; i < kRepeats; ++i) cpu.kernel->tile(tile);
    return int64_t{2} * kRepeats * kTileRows * nr * k;
  });
}

struct PackedGemm::State {
  State(const GemmPlan& p) : plan(p), memory(p) {}
  GemmPlan plan;
  Workspace<Operands> memory;
};

PackedGemm::PackedGemm(int64_t m, int64_t n, int64_t k, int64_t outliers, const CpuFacts& cpu) {
  const GemmPlan plan = plan_gemm(m, n, k, outliers, kMaxOutlierBits, cpu);
  require(plan.slices.size() == 1, "int8tile::PackedGemm: k must be at most ", kSliceDepth,
          "; got ", k);
  state_ = std::make_unique<State>(plan);
  const Operands& at = state_->memory.at;
  const int64_t panel = round_up(outliers, kGroup), columns = round_up(n, plan.cpu.kernel->nr);
  std::mt19937 random(0);
  fill_random(reinterpret_cast<uint8_t*>(at.a), m * plan.k_padded, random);
  fill_random(reinterpret_cast<uint8_t*>(at.a_high), m * panel, random);
  fill_random(at.b, columns * plan.k_padded, random);
  fill_random(at.b_high, columns * panel, random);
  for (int64_t i = 0; i < m; ++i) at.compensation[i] = 0, at.row_scale[i] = 0.5f;
  for (int64_t j = 0; j < n; ++j) at.col_scale[j] = at.bias[j] = 0.5f;
}

PackedGemm::~PackedGemm() = default;
PackedGemm::PackedGemm(PackedGemm&&) noexcept = default;

void PackedGemm::run() {
  const Operands& at = state_->memory.at;
  const GemmPlan& plan = state_->plan;
  gemm(plan, {at.a, at.b, at.compensation, plan.capacity, at.a_high, nullptr, at.b_high},
       {at.row_scale, at.col_scale, at.bias, {at.out, DType::kFloat32, plan.n}});
}

}  // namespace int8tile
