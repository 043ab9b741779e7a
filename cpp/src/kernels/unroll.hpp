// Compile-time loops: GCC keeps arrays that pragma-unrolled loops index in memory, packs in
// registers.
#pragma once

#define INT8TILE_INLINE static inline __attribute__((always_inline))

namespace int8tile {
namespace {

template <int... I>
struct Indices {};
template <int N, int... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndices<0, I...> {
  using type = Indices<I...>;
};
template <int N>
using IndicesOf = typename MakeIndices<N>::type;

}  // namespace
}  // namespace int8tile
