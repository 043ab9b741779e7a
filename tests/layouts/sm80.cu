// Walks the sm_80 GEMM's own layouts on the host: what each thread reads, feeds and writes.
#include <cstdio>
#include <map>
#include <set>
#include <utility>

#include "gemm/sm80_layout.cuh"

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

// Every output is written once; a quad owns four neighboring groups of 8 columns.
template <int TileM, int TileN>
bool outputs_are_covered() {
  typename Sm80Layout<TileM, TileN>::Mma mma;
  std::set<Coordinate> seen;
  for (int t = 0; t < size(mma); ++t) {
    auto crd =
        mma.get_slice(t).partition_C(make_identity_tensor(make_shape(Int<TileM>{}, Int<TileN>{})));
    auto pairs = make_tensor(crd.data(), by_pairs(crd.layout()));
    EXPECT(size<0>(pairs) == 2 && size<2>(pairs) % 4 == 0);
    for (int b = 0; b < size<2>(pairs); ++b)
      for (int r = 0; r < size<1>(pairs); ++r) {
        const int m = get<0>(pairs(0, r, b)), n = get<1>(pairs(0, r, b));
        EXPECT(get<0>(pairs(1, r, b)) == m && get<1>(pairs(1, r, b)) == n + 1);
        EXPECT(n % 8 == 2 * (t & 3));
        EXPECT(n == int(get<1>(pairs(0, r, b & ~3))) + 8 * (b & 3));
        EXPECT(seen.insert({m, n}).second && seen.insert({m, n + 1}).second);
      }
  }
  EXPECT(seen.size() == size_t{TileM} * TileN);
  return true;
}

// The 8 rows that ldmatrix reads together lie in 8 different groups of 16-byte banks.
template <class Shared>
bool reads_are_free_of_conflicts() {
  Shared shared;
  for (int k = 0; k < size<1>(shared); k += 16)
    for (int r = 0; r < size<0>(shared); r += 8) {
      std::set<int> groups;
      for (int i = 0; i < 8; ++i) groups.insert(shared(r + i, k, 0) / 16 % 8);
      EXPECT(groups.size() == 8);
    }
  return true;
}

// The copies from global memory fill each byte of the tile once.
template <class Layout>
bool copies_fill_the_tile(int rows) {
  std::set<int> covered;
  auto id = make_identity_tensor(make_shape(rows, Int<Layout::kDepth>{}));
  for (int t = 0; t < Layout::kThreads; ++t) {
    auto part = typename Layout::ToShared{}.get_slice(t).partition_S(id);
    for (int i = 0; i < size(part); ++i)
      EXPECT(covered.insert(int(get<0>(part(i))) * Layout::kDepth + int(get<1>(part(i)))).second);
  }
  EXPECT(covered.size() == size_t(rows) * Layout::kDepth);
  return true;
}

// Every byte that ldmatrix puts into a register is the (row, k) that the matrix instruction wants.
template <class Layout, bool IsA, int Rows>
bool fragments_hold_what_the_instruction_wants() {
  typename Layout::Mma mma;
  static int8_t bytes[Rows * Layout::kDepth];
  auto tile = make_tensor(
      &bytes[0], make_layout(make_shape(Int<Rows>{}, Int<Layout::kDepth>{}), LayoutRight{}));
  auto id = make_identity_tensor(make_shape(Int<Rows>{}, Int<Layout::kDepth>{}));
  auto reader = [&] {
    if constexpr (IsA)
      return make_tiled_copy_A(typename Layout::ToRegisters{}, mma);
    else
      return make_tiled_copy_B(typename Layout::ToRegisters{}, mma);
  }();
  using Traits = Copy_Traits<SM75_U32x4_LDSM_N>;
  std::map<int, Coordinate> source;  // bit -> (lane, byte)
  for (int lane = 0; lane < 32; ++lane)
    for (int byte = 0; byte < 16; ++byte)
      source[typename Traits::SrcLayout{}(lane, byte * 8)] = {lane, byte};
  for (int t = 0; t < Layout::kThreads; ++t) {
    auto thread = mma.get_slice(t);
    auto fragment = [&] {
      if constexpr (IsA)
        return thread.partition_fragment_A(tile);
      else
        return thread.partition_fragment_B(tile);
    }();
    auto wanted = [&] {
      if constexpr (IsA)
        return thread.partition_A(id);
      else
        return thread.partition_B(id);
    }();
    std::map<int, Coordinate> registers;
    for (int i = 0; i < size(fragment); ++i)
      registers[fragment.layout()(i)] = {int(get<0>(wanted(i))), int(get<1>(wanted(i)))};
    auto into = reader.get_slice(t).retile_D(fragment);
    for (int v = 0; v < size<0>(into); ++v) {
      const auto [lane, byte] = source.at(typename Traits::DstLayout{}(t % 32, v % 16 * 8));
      auto from = reader.get_slice(t / 32 * 32 + lane).partition_S(id);
      for (int r = 0; r < size<1>(into); ++r)
        for (int k = 0; k < size<2>(into); ++k) {
          auto got = from(byte + v / 16 * 16, r, k);
          EXPECT((Coordinate{int(get<0>(got)), int(get<1>(got))}) ==
                 registers.at(int(&into(v, r, k) - fragment.data())));
        }
    }
  }
  return true;
}

template <int TileM, int TileN>
bool check_tile() {
  using L = Sm80Layout<TileM, TileN>;
  return outputs_are_covered<TileM, TileN>() &&
         reads_are_free_of_conflicts<typename L::SharedA>() &&
         reads_are_free_of_conflicts<typename L::SharedB>() && copies_fill_the_tile<L>(TileM) &&
         copies_fill_the_tile<L>(TileN) &&
         fragments_hold_what_the_instruction_wants<L, true, TileM>() &&
         fragments_hold_what_the_instruction_wants<L, false, TileN>();
}

}  // namespace

int main() {
  const bool right = check_tile<128, 256>() && check_tile<64, 128>();
  std::puts(right ? "ok" : "FAILED");
  return right ? 0 : 1;
}
