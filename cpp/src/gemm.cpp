// The blocked loop around the register tile. Start reading at run_slice.
#include "int8tile/gemm.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "int8tile/check.hpp"
#include "int8tile/memory.hpp"
#include "int8tile/parallel.hpp"
#include "kernels/kernel.hpp"
#include "pack.hpp"

namespace int8tile {
namespace {

// One thread's accumulators between blocks of K, and one row in float32.
struct TileScratch {
  TileScratch(Arena& arena, const GemmPlan& plan)
      : tile_elements(kTileRows * plan.cpu.kernel->nr),
        block_elements(round_up(plan.m_block, kTileRows) * plan.cpu.kernel->nr),
        acc(arena.take<int32_t>(plan.cpu.threads * block_elements)),
        row(arena.take<float>(plan.cpu.threads * round_up(plan.cpu.kernel->nr, 16))) {}
  int64_t tile_elements, block_elements;
  int32_t* acc;
  float* row;
};

struct Destination {
  const Epilogue* epilogue;  // null: integers
  int32_t* integers;
  bool accumulate;
};

struct SliceRun {
  const GemmPlan& plan;
  const GemmOperands& operands;
  std::size_t slice;
  Destination to;
  const TileScratch& scratch;

  const Kernel& kernel() const { return *plan.cpu.kernel; }
  int64_t nr() const { return kernel().nr; }
  bool limbs() const { return slice == 0 && operands.outliers > 0; }
  bool low_panel() const { return limbs() && operands.a_low; }
  bool tile_writes_output() const {
    return to.epilogue && !to.accumulate && to.epilogue->out.dtype == DType::kFloat32;
  }

  // The part of K that tiles cover in one visit: [begin, end) of the regular segment, or the panel
  // of low limbs.
  struct Visit {
    int64_t begin = 0, end = 0;  // of the regular segment
    bool low = false;            // the panel of low limbs instead
    bool first = false, last = false;
  };

  void block_of_k(int64_t m0, int64_t m1, int64_t n0, const Visit& visit, int thread) const {
    const auto [begin, end, low, first, last] = visit;
    const int64_t limb_depth = round_up(operands.outliers, kGroup);
    const int64_t depth = low ? limb_depth : end - begin;
    const uint8_t* b =
        low ? operands.b_outlier + n0 * limb_depth : operands.b + n0 * plan.k_padded + begin * nr();
    const auto* next = reinterpret_cast<const char*>(b + depth * nr());
    const bool high = first && limbs();
    Tile tile{};
    tile.b = b;
    tile.groups = depth / kGroup;
    tile.high_groups = high ? limb_depth / kGroup : 0;
    tile.b_high = high ? operands.b_outlier + n0 * limb_depth : nullptr;
    tile.cols = static_cast<int>(std::min(nr(), plan.n - n0));
    tile.load = !first;
    if (last && tile_writes_output()) {
      const Epilogue& epilogue = *to.epilogue;
      tile.out_stride = epilogue.out.row_stride;
      tile.col_scale = epilogue.col_scale + n0;
      tile.bias = epilogue.bias ? epilogue.bias + n0 : nullptr;
      tile.stream = plan.stream && tile.out_stride % 16 == 0 &&
                    reinterpret_cast<std::uintptr_t>(epilogue.out.data) % 64 == 0;
    }
    const int64_t turns = depth / kDepthAlign;
    for (int64_t m = m0; m < m1; m += kTileRows) {
      const int64_t q = (m - m0) / kTileRows;
      tile.rows = static_cast<int>(std::min<int64_t>(kTileRows, plan.m - m));
      tile.a = low ? operands.a_low + m * limb_depth
                   : operands.a + m * plan.k_padded + begin * tile.rows;
      tile.a_high = high ? operands.a_high + m * limb_depth : nullptr;
      tile.acc = scratch.acc + thread * scratch.block_elements + q * scratch.tile_elements;
      tile.compensation = operands.compensation + static_cast<int64_t>(slice) * plan.m + m;
      // Each visit brings its share of the next panel of B, one line a turn.
      const bool fetch = q * turns < depth * nr() / 64;
      tile.prefetch = fetch ? next + q * turns * 64 : next;
      tile.prefetch_stride = fetch ? 64 : 0;
      if (last && tile_writes_output()) {
        tile.out = static_cast<float*>(to.epilogue->out.data) + m * tile.out_stride + n0;
        tile.row_scale = to.epilogue->row_scale + m;
      }
      kernel().tile(tile);
      if (last && !tile.out) write(m, n0, tile, thread);
    }
  }

  void write(int64_t m, int64_t n0, const Tile& tile, int thread) const {
    if (to.epilogue) {
      dequantize_block(kernel(), *to.epilogue, tile.acc, nr(), m, tile.rows, n0, tile.cols,
                       to.accumulate, scratch.row + thread * round_up(nr(), 16));
      return;
    }
    for (int r = 0; r < tile.rows; ++r)
      std::memcpy(to.integers + (m + r) * plan.n + n0, tile.acc + r * nr(),
                  static_cast<std::size_t>(tile.cols) * sizeof(int32_t));
  }

  void task(int64_t index, int thread) const {
    const int64_t n_blocks = ceil_div(plan.n, plan.n_block);
    const int64_t m0 = index / n_blocks * plan.m_block;
    const int64_t m1 = std::min(plan.m, m0 + plan.m_block);
    const int64_t n_begin = index % n_blocks * plan.n_block;
    const int64_t n_end = std::min(plan.n, n_begin + plan.n_block);
    const int64_t k_begin = plan.slices[slice].begin;
    const int64_t k_end = slice + 1 == plan.slices.size() ? plan.k_padded : plan.slices[slice].end;
    for (int64_t n = n_begin; n < n_end; n += nr()) {
      bool first = true;
      if (low_panel()) {
        block_of_k(m0, m1, n, {0, 0, true, true, false}, thread);
        first = false;
      }
      // At least one visit: an empty depth still has high limbs, and an output to write.
      for (int64_t k = k_begin; first || k < k_end; k += plan.k_block) {
        const int64_t end = std::min(k_end, k + plan.k_block);
        block_of_k(m0, m1, n, {k, end, false, first, end == k_end}, thread);
        first = false;
      }
    }
    // Streaming stores are ordered by no release store, only by a full fence.
    if (plan.stream) std::atomic_thread_fence(std::memory_order_seq_cst);
  }
};

void run_slice(const GemmPlan& plan, const GemmOperands& operands, std::size_t slice,
               const Destination& to) {
  const Workspace<TileScratch> scratch(plan);
  const SliceRun run{plan, operands, slice, to, scratch.at};
  parallel_for(plan.cpu.threads, plan.tasks,
               [&](int64_t index, int thread) { run.task(index, thread); });
}

struct FloatOutput {
  FloatOutput(Arena& arena, int64_t elements) : values(arena.take<float>(elements)) {}
  float* values;
};

void add_bias_and_store(const GemmPlan& plan, const Epilogue& epilogue, const float* values) {
  parallel_for(plan.cpu.threads, plan.m, [&](int64_t i, int) {
    auto* row = const_cast<float*>(values) + i * plan.n;
    if (epilogue.bias)
      for (int64_t j = 0; j < plan.n; ++j) row[j] += epilogue.bias[j];
    store_row(*plan.cpu.kernel, epilogue.out, i, 0, row, plan.n);
  });
}

}  // namespace

void gemm(const GemmPlan& plan, const GemmOperands& operands, const Epilogue& epilogue) {
  const OutputView& out = epilogue.out;
  if (out.row_stride == plan.n)
    prepare_pages(out.data, plan.m * plan.n * element_size(out.dtype), plan.cpu.threads);
  if (plan.slices.size() == 1) return run_slice(plan, operands, 0, {&epilogue, nullptr, false});
  const Workspace<FloatOutput> sum(plan.m * plan.n);
  Epilogue partial = epilogue;
  partial.bias = nullptr;
  partial.out = {sum.at.values, DType::kFloat32, plan.n};
  for (std::size_t s = 0; s < plan.slices.size(); ++s)
    run_slice(plan, operands, s, {&partial, nullptr, s > 0});
  add_bias_and_store(plan, epilogue, sum.at.values);
}

void gemm_integers(const GemmPlan& plan, const GemmOperands& operands, std::size_t slice,
                   int32_t* integers) {
  run_slice(plan, operands, slice, {nullptr, integers, false});
}

namespace {

struct PackedInt8 {
  PackedInt8(Arena& arena, const GemmPlan& plan, int64_t strip_bytes, int64_t high_columns)
      : high_depth(round_up(high_columns, kDepthAlign)),
        strips(arena.take<int8_t>(plan.cpu.threads * strip_bytes)),
        a(arena.take<int8_t>(plan.m * plan.k_padded)),
        a_high(arena.take<int8_t>(plan.m * high_depth)),
        b(arena.take<uint8_t>(round_up(plan.n, plan.cpu.kernel->nr) * plan.k_padded)),
        b_high(arena.take<uint8_t>(round_up(plan.n, plan.cpu.kernel->nr) * high_depth)),
        compensation(arena.take<int32_t>(plan.m)) {}
  int64_t high_depth;
  int8_t *strips, *a, *a_high;
  uint8_t *b, *b_high;
  int32_t* compensation;
};

// Row-major int8 [rows, cols] to panels of depth round_up(cols, 16), strip by strip.
template <class Pack>
void pack_int8(const CpuFacts& cpu, const int8_t* q, int64_t rows, int64_t cols, int64_t strip_rows,
               int8_t* strips, int64_t strip_bytes, const Pack& pack) {
  const int64_t stride = round_up(cols, kDepthAlign);
  parallel_for(cpu.threads, ceil_div(rows, strip_rows), [&](int64_t s, int thread) {
    int8_t* strip = strips + thread * strip_bytes;
    const int64_t first = s * strip_rows, count = std::min(strip_rows, rows - first);
    for (int64_t r = 0; r < count; ++r) {
      std::memcpy(strip + r * stride, q + (first + r) * cols, static_cast<std::size_t>(cols));
      std::memset(strip + r * stride + cols, 0, static_cast<std::size_t>(stride - cols));
    }
    pack(Strip{strip, stride, first, count, cols});
  });
}

}  // namespace

void multiply_int8(const Int8Product& p, const CpuFacts& cpu, int32_t* out) {
  require(p.k + 128 * p.high_columns < kSliceDepth,
          "int8tile::gemm: k + 128 * high columns must be "
          "below ",
          kSliceDepth, " so that every sum fits int32; got ", p.k, " and ", p.high_columns);
  const GemmPlan plan = plan_gemm(p.m, p.n, p.k, 0, kMaxOutlierBits, cpu);
  const int64_t depth = round_up(std::max(p.k, p.high_columns), kDepthAlign);
  const int64_t strip_bytes = kRowsPerStripB * depth;
  const Workspace<PackedInt8> packed(plan, strip_bytes, p.high_columns);
  const PackedInt8& at = packed.at;
  const Kernel& kernel = *cpu.kernel;
  const auto pack_a_side = [&](const int8_t* q, int64_t cols, int32_t weight, int8_t* panels) {
    pack_int8(cpu, q, p.m, cols, kRowsPerStripA, at.strips, strip_bytes, [&](const Strip& strip) {
      pack_a(kernel, strip, strip.stride, panels);
      for (int64_t r = 0; r < strip.rows; ++r) {
        const int32_t sum = kernel.row_sum(strip.q + r * strip.stride, cols);
        at.compensation[strip.first + r] += static_cast<int32_t>(
            static_cast<uint32_t>(-kernel.b_offset * weight) * static_cast<uint32_t>(sum));
      }
    });
  };
  const auto pack_b_side = [&](const int8_t* q, int64_t cols, uint8_t* panels) {
    pack_int8(cpu, q, p.n, cols, kRowsPerStripB, at.strips, strip_bytes,
              [&](const Strip& strip) { pack_b(kernel, strip, strip.stride, panels); });
  };
  std::fill_n(at.compensation, p.m, 0);
  pack_a_side(p.a, p.k, 1, at.a);
  pack_b_side(p.b, p.k, at.b);
  if (p.high_columns > 0) {
    pack_a_side(p.a_high, p.high_columns, 128, at.a_high);
    pack_b_side(p.b_high, p.high_columns, at.b_high);
  }
  GemmOperands operands{at.a, at.b, at.compensation, at.high_depth, at.a_high, nullptr, at.b_high};
  gemm_integers(plan, operands, 0, out);
}

}  // namespace int8tile
