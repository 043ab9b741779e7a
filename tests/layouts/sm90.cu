// Walks the sm_90 GEMM's own layouts on the host, against what TMA and wgmma are documented to do.
#include <cstddef>
#include <cstdio>
#include <set>
#include <utility>

#include "gemm/sm90_layout.cuh"

using namespace int8tile::cuda;

namespace {

using Coordinate = std::pair<int, int>;

#define EXPECT(condition)                                        \
  do {                                                           \
    if (!(condition)) {                                          \
      std::printf("FAILED line %d: %s\n", __LINE__, #condition); \
      return false;                                              \
    }                                                            \
  } while (0)

// The 128-byte swizzle: the 16-byte column of an address is mixed with its 128-byte row.
int swizzled(int address) { return address ^ (address >> 7 & 7) << 4; }

// Every output is written once; a quad owns four neighboring groups of 8 columns.
template <class L>
bool outputs_are_covered() {
  typename L::Mma mma;
  EXPECT(int(size(mma)) == L::kConsumerThreads);
  std::set<Coordinate> seen;
  for (int t = 0; t < size(mma); ++t) {
    auto crd = mma.get_slice(t).partition_C(
        make_identity_tensor(make_shape(Int<L::kTileM>{}, Int<L::kTileN>{})));
    auto pairs = make_tensor(crd.data(), wgmma_pairs(crd.layout()));
    auto acc = partition_fragment_C(mma, make_shape(Int<L::kTileM>{}, Int<L::kTileN>{}));
    EXPECT(wgmma_pairs(acc.layout()).shape() == pairs.shape());
    EXPECT(size<0>(pairs) == 2 && size<2>(pairs) % 4 == 0);
    for (int b = 0; b < size<2>(pairs); ++b)
      for (int r = 0; r < size<1>(pairs); ++r) {
        const int m = get<0>(pairs(0, r, b)), n = get<1>(pairs(0, r, b));
        EXPECT(get<0>(pairs(1, r, b)) == m && get<1>(pairs(1, r, b)) == n + 1);
        EXPECT(n % 8 == 2 * (t & 3));
        EXPECT(n == int(get<1>(pairs(0, r, b & ~3))) + 8 * (b & 3));
        // Where wgmma leaves its sums: 16 rows a warp, and register 4 b + 2 r of the thread.
        EXPECT(m == t / 32 * 16 + t % 32 / 4 + 8 * r && n == 8 * b + 2 * (t % 4));
        EXPECT(int(wgmma_pairs(acc.layout())(0, r, b)) == 4 * b + 2 * r);
        EXPECT(seen.insert({m, n}).second && seen.insert({m, n + 1}).second);
      }
  }
  EXPECT(seen.size() == size_t(L::kTileM) * L::kTileN);
  return true;
}

// The copies of a cluster fill each stage of each block once, with as many bytes as it waits for.
template <class L>
bool copies_fill_the_stages() {
  EXPECT(offsetof(typename L::Shared, a) % 1024 == 0 &&
         offsetof(typename L::Shared, b) % 1024 == 0);
  EXPECT(L::kBoxA <= 256 && L::kBoxB <= 256 && L::kDepth == 128);
  const auto shared_a = as_position_independent_swizzle_layout(typename L::SharedA{});
  const auto shared_b = as_position_independent_swizzle_layout(typename L::SharedB{});
  for (int stage = 0; stage < L::kStages; ++stage) {
    std::set<int> a, b;
    for (int k = 0; k < L::kDepth; ++k) {
      for (int row = 0; row < L::kBoxA; ++row) {
        const int to = L::a_at(stage) + swizzled(row * L::kDepth + k);
        EXPECT(to == int(shared_a(row, k, stage)) && a.insert(to).second);
      }
      for (int rank = 0; rank < L::kCluster; ++rank)
        for (int row = 0; row < L::kBoxB; ++row) {
          const int to = L::b_at(stage, rank) + swizzled(row * L::kDepth + k);
          EXPECT(to == int(shared_b(rank * L::kBoxB + row, k, stage)) && b.insert(to).second);
        }
    }
    for (int rank = 0; rank < L::kCluster; ++rank) EXPECT(L::b_at(stage, rank) % 1024 == 0);
    EXPECT(L::a_at(stage) % 1024 == 0 && *b.rbegin() < int(sizeof(L::Shared::b)));
    EXPECT(*a.rbegin() < int(sizeof(L::Shared::a)));
    EXPECT(a.size() + b.size() == size_t(L::kStageBytes));
  }
  EXPECT(L::kBlocks * (sizeof(typename L::Shared) + 1024) <= 228 * 1024);
  return true;
}

// A descriptor names the first row of 8-row groups that lie 1024 bytes apart; a step of 32 moves
// its address by 32 bytes. What wgmma finds there is the (row, k) of the warpgroup's operand.
template <class L, bool IsA, class Shared>
bool descriptors_find_the_operands() {
  typename L::Mma mma;
  static int8_t bytes[cosize_v<Shared>];
  const Shared shared;
  const auto positions = as_position_independent_swizzle_layout(shared);
  auto smem = make_tensor(make_smem_ptr(&bytes[0]), shared);
  constexpr int kRows = IsA ? 64 : L::kTileN;
  for (int t = 0; t < size(mma); t += L::kGroupThreads) {
    const auto thread = mma.get_slice(t);
    auto part = [&] {
      if constexpr (IsA)
        return thread.partition_A(smem);
      else
        return thread.partition_B(smem);
    }();
    EXPECT(size<1>(part) == 1 && size<2>(part) == L::kSteps && size<3>(part) == L::kStages);
    const auto units = replace<0>(recast<const uint128_t>(part).layout(), Layout<_1, _0>{});
    auto first = recast<const uint128_t>(part);
    const int start = int(reinterpret_cast<const int8_t*>(raw_pointer_cast(first.data())) - bytes);
    const int row0 = IsA ? t / L::kGroupThreads * 64 : 0;
    for (int stage = 0; stage < L::kStages; ++stage)
      for (int step = 0; step < L::kSteps; ++step) {
        const int address = start + 16 * int(units(0, 0, step, stage));
        for (int row = 0; row < kRows; ++row)
          for (int k = 0; k < kMmaDepth; ++k)
            EXPECT(swizzled(address + row / 8 * 1024 + row % 8 * 128 + k) ==
                   int(positions(row0 + row, step * kMmaDepth + k, stage)));
      }
  }
  return true;
}

// Every tile of the output belongs to one unit.
template <class L>
bool units_cover_the_output() {
  for (int m : {1, 64, 129, 256, 257, 2048, 2304, 5000})
    for (int n : {1, 128, 257, 1000, 4096}) {
      const TileGrid grid = TileGrid::make<L>(m, n);
      std::set<Coordinate> seen;
      for (int unit = 0; unit < grid.units(); ++unit) {
        const Unit at = grid.at(unit);
        EXPECT(at.m0 % (L::kTileM * L::kCluster) == 0 && at.n0 % L::kTileN == 0);
        EXPECT(at.m0 < m && at.n0 < n && seen.insert({at.m0, at.n0}).second);
      }
      const int tiles_m = (m + L::kTileM * L::kCluster - 1) / (L::kTileM * L::kCluster);
      EXPECT(int(seen.size()) == tiles_m * ((n + L::kTileN - 1) / L::kTileN));
    }
  EXPECT(TileGrid::make<L>(77, 0).units() == 0);
  return true;
}

// Registers are handed over among the threads of a block, never beyond what it started with.
template <class L>
bool registers_suffice() {
  if (L::kConsumerRegisters == 0) return true;
  const int at_start = 65536 / L::kBlocks / L::kThreads / 8 * 8;
  EXPECT(L::kProducerRegisters % 8 == 0 && L::kConsumerRegisters % 8 == 0);
  EXPECT(L::kGroupThreads * L::kProducerRegisters + L::kConsumerThreads * L::kConsumerRegisters <=
         L::kThreads * at_start);
  return true;
}

template <class L>
bool check_tile() {
  return outputs_are_covered<L>() && copies_fill_the_stages<L>() &&
         descriptors_find_the_operands<L, true, typename L::SharedA>() &&
         descriptors_find_the_operands<L, false, typename L::SharedB>() &&
         units_cover_the_output<L>() && registers_suffice<L>();
}

}  // namespace

int main() {
  const bool right = check_tile<Sm90LargeTile>() && check_tile<Sm90SmallTile>();
  std::puts(right ? "ok" : "FAILED");
  return right ? 0 : 1;
}
