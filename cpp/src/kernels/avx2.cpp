// The AVX2 kernel: int8 widened to int16 for vpmaddwd, which is exact for every pair of int8
// values (vpmaddubsw saturates). A 6 x 8 tile: each accumulator holds four columns as two partial
// sums, joined once at the end.
#include <immintrin.h>

#include "rows.hpp"
#include "unroll.hpp"

namespace int8tile {
namespace {

constexpr int kColumns = 8;

INT8TILE_INLINE void multiply_row(__m256i& c0, __m256i& c1, const int8_t* a, __m256i b0,
                                  __m256i b1) {
  int32_t four;
  __builtin_memcpy(&four, a, sizeof four);
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
  c0 = _mm256_add_epi32(c0, _mm256_madd_epi16(wide, b0));
  c1 = _mm256_add_epi32(c1, _mm256_madd_epi16(wide, b1));
}

template <int R>
struct Accumulators {
  __m256i left[R];
  __m256i right[R];
};

template <int R, int... I>
INT8TILE_INLINE void multiply(Accumulators<R>& c, const int8_t* a, const uint8_t* b, int64_t groups,
                              Indices<I...>) {
  for (; groups > 0; --groups, a += kGroup * R, b += kGroup * kColumns) {
    const auto* columns = reinterpret_cast<const __m128i*>(b);
    const __m256i b0 = _mm256_cvtepi8_epi16(_mm_loadu_si128(columns));
    const __m256i b1 = _mm256_cvtepi8_epi16(_mm_loadu_si128(columns + 1));
    (multiply_row(c.left[I], c.right[I], a + kGroup * I, b0, b1), ...);
  }
}

template <int R, int... I>
void tile_rows(const Tile& t, Indices<I...> rows) {
  Accumulators<R> c;
  ((c.left[I] = c.right[I] = _mm256_setzero_si256()), ...);
  if (!t.load && t.high_groups > 0) {
    multiply<R>(c, t.a_high, t.b_high, t.high_groups, rows);
    ((c.left[I] = _mm256_slli_epi32(c.left[I], kLimbShift),
      c.right[I] = _mm256_slli_epi32(c.right[I], kLimbShift)),
     ...);
  }
  multiply<R>(c, t.a, t.b, t.groups, rows);
  alignas(32) int32_t sums[R][kColumns];
  // hadd joins neighbours inside 128-bit halves: columns come out as 0 1 4 5 | 2 3 6 7.
  (_mm256_store_si256(reinterpret_cast<__m256i*>(sums[I]),
                      _mm256_permute4x64_epi64(_mm256_hadd_epi32(c.left[I], c.right[I]), 0xd8)),
   ...);
  for (int r = 0; r < R; ++r) {
    if (t.load)
      for (int j = 0; j < kColumns; ++j) sums[r][j] += t.acc[r * kColumns + j];
    if (t.out != nullptr)
      rows_dequantize(
          {sums[r], t.cols, t.row_scale[r], t.col_scale, t.bias, t.out + r * t.out_stride, false});
    else
      for (int j = 0; j < kColumns; ++j) t.acc[r * kColumns + j] = sums[r][j];
  }
}

void tile(const Tile& t) {
  switch (t.rows) {
    case 1:
      return tile_rows<1>(t, IndicesOf<1>{});
    case 2:
      return tile_rows<2>(t, IndicesOf<2>{});
    case 3:
      return tile_rows<3>(t, IndicesOf<3>{});
    case 4:
      return tile_rows<4>(t, IndicesOf<4>{});
    case 5:
      return tile_rows<5>(t, IndicesOf<5>{});
    default:
      return tile_rows<6>(t, IndicesOf<6>{});
  }
}

}  // namespace

constinit const Kernel kAvx2Kernel = generic_kernel("avx2", kColumns, 0, tile);

}  // namespace int8tile
