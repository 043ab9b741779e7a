// AVX-512 transposes between rows of int8 and the panels that the register tile reads.
#pragma once

#include <immintrin.h>

#include "avx512_rows.hpp"

namespace int8tile {
namespace {

// Six rows of 16 dwords to 16 groups of six dwords: pairs of rows are joined first, then each
// output vector takes its eight pairs from the three joined streams.
struct SixRowShuffle {
  alignas(64) int32_t low[16], high[16];          // (0, 16, 1, 17, ...), (8, 24, 9, 25, ...)
  alignas(64) int64_t first[3][8], second[3][8];  // streams 0 and 1, then 2 into the gaps
};

// Output vector v holds pairs 8v .. 8v+7 of the sequence (stream 0, 1, 2 of group 0, of group 1
// ...).
constexpr SixRowShuffle six_row_shuffle() {
  SixRowShuffle shuffle{};
  for (int i = 0; i < 16; ++i) {
    shuffle.low[i] = i / 2 + (i % 2) * 16;
    shuffle.high[i] = shuffle.low[i] + 8;
  }
  for (int v = 0; v < 3; ++v)
    for (int i = 0; i < 8; ++i) {
      const int group = (8 * v + i) / 3, stream = (8 * v + i) % 3;
      shuffle.first[v][i] = stream == 1 ? 8 + group : group;
      shuffle.second[v][i] = stream == 2 ? 8 + group : i;
    }
  return shuffle;
}

constexpr SixRowShuffle kSixRowShuffle = six_row_shuffle();

void avx512_pack_six_rows(const int8_t* q, int64_t row_stride, int64_t groups, uint8_t* out) {
  for (int64_t g = 0; g < groups; g += kLanes) {
    const __mmask16 lanes = first_lanes(groups - g);
    __m512i rows[kTileRows];
    for (int r = 0; r < kTileRows; ++r)
      rows[r] = _mm512_maskz_loadu_epi32(lanes, q + r * row_stride + g * kGroup);
    for (int half = 0; half < 2; ++half) {
      const __m512i order = _mm512_load_si512(half == 0 ? kSixRowShuffle.low : kSixRowShuffle.high);
      __m512i streams[3];
      for (int j = 0; j < 3; ++j)
        streams[j] = _mm512_permutex2var_epi32(rows[2 * j], order, rows[2 * j + 1]);
      const int64_t dwords = (groups - g - 8 * half) * kTileRows;
      uint8_t* to = out + (g + 8 * half) * kTileRows * kGroup;
      for (int v = 0; v < 3; ++v) {
        const __m512i two = _mm512_permutex2var_epi64(
            streams[0], _mm512_load_si512(kSixRowShuffle.first[v]), streams[1]);
        const __m512i all =
            _mm512_permutex2var_epi64(two, _mm512_load_si512(kSixRowShuffle.second[v]), streams[2]);
        _mm512_mask_storeu_epi32(to + 64 * v, first_lanes(dwords - 16 * v), all);
      }
    }
  }
}

// 16 x 16 dwords in place: pairs, then fours of rows, then whole lanes.
INT8TILE_INLINE void transpose_dwords(__m512i (&rows)[16]) {
  __m512i fours[4][4];  // [rows 4b .. 4b+3][j]: lane i holds column 4i + j
  for (int b = 0; b < 4; ++b) {
    const __m512i* r = rows + 4 * b;
    const __m512i low01 = _mm512_unpacklo_epi32(r[0], r[1]);
    const __m512i high01 = _mm512_unpackhi_epi32(r[0], r[1]);
    const __m512i low23 = _mm512_unpacklo_epi32(r[2], r[3]);
    const __m512i high23 = _mm512_unpackhi_epi32(r[2], r[3]);
    fours[b][0] = _mm512_unpacklo_epi64(low01, low23);
    fours[b][1] = _mm512_unpackhi_epi64(low01, low23);
    fours[b][2] = _mm512_unpacklo_epi64(high01, high23);
    fours[b][3] = _mm512_unpackhi_epi64(high01, high23);
  }
  for (int j = 0; j < 4; ++j) {
    const __m512i a = _mm512_shuffle_i32x4(fours[0][j], fours[1][j], 0x44);
    const __m512i b = _mm512_shuffle_i32x4(fours[2][j], fours[3][j], 0x44);
    const __m512i c = _mm512_shuffle_i32x4(fours[0][j], fours[1][j], 0xee);
    const __m512i d = _mm512_shuffle_i32x4(fours[2][j], fours[3][j], 0xee);
    rows[j] = _mm512_shuffle_i32x4(a, b, 0x88);
    rows[4 + j] = _mm512_shuffle_i32x4(a, b, 0xdd);
    rows[8 + j] = _mm512_shuffle_i32x4(c, d, 0x88);
    rows[12 + j] = _mm512_shuffle_i32x4(c, d, 0xdd);
  }
}

// kLanes output rows of a panel of `out_rows`; those beyond `rows` hold the offset alone.
INT8TILE_INLINE void pack_lanes(const int8_t* q, int64_t row_stride, int rows, int out_rows,
                                int64_t groups, int offset, uint8_t* out) {
  const __m512i flip = _mm512_set1_epi8(static_cast<int8_t>(offset));
  for (int64_t g = 0; g < groups; g += kLanes) {
    const __mmask16 inside = first_lanes(groups - g);
    __m512i block[kLanes];
    for (int r = 0; r < kLanes; ++r) {
      const __mmask16 lanes = r < rows ? inside : __mmask16{0};
      block[r] = _mm512_maskz_loadu_epi32(lanes, q + r * row_stride + g * kGroup);
    }
    transpose_dwords(block);
    const int64_t count = groups - g < kLanes ? groups - g : kLanes;
    for (int i = 0; i < kLanes; ++i)
      if (i < count)
        _mm512_storeu_si512(out + (g + i) * out_rows * kGroup, _mm512_xor_si512(block[i], flip));
  }
}

void avx512_pack_rows(const int8_t* q, int64_t row_stride, int rows, int out_rows, int64_t groups,
                      int offset, uint8_t* out) {
  if (rows == kTileRows && out_rows == kTileRows && offset == 0)
    return avx512_pack_six_rows(q, row_stride, groups, out);
  if (out_rows % kLanes != 0)
    return rows_pack_rows(q, row_stride, rows, out_rows, groups, offset, out);
  for (int r = 0; r < out_rows; r += kLanes)
    pack_lanes(q + r * row_stride, row_stride, rows - r, out_rows, groups, offset,
               out + r * kGroup);
}

void avx512_interleave4(const int8_t* const q[4], int64_t n, int offset, uint8_t* out) {
  const __m512i flip = _mm512_set1_epi8(static_cast<int8_t>(offset));
  int64_t j = 0;
  for (; j + 64 <= n; j += 64) {
    __m512i row[4];
    for (int r = 0; r < 4; ++r) row[r] = _mm512_xor_si512(_mm512_loadu_si512(q[r] + j), flip);
    const __m512i low01 = _mm512_unpacklo_epi8(row[0], row[1]);
    const __m512i high01 = _mm512_unpackhi_epi8(row[0], row[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(row[2], row[3]);
    const __m512i high23 = _mm512_unpackhi_epi8(row[2], row[3]);
    // Lane i of piece p holds columns 16i + 4p .. 16i + 4p + 3.
    const __m512i p0 = _mm512_unpacklo_epi16(low01, low23);
    const __m512i p1 = _mm512_unpackhi_epi16(low01, low23);
    const __m512i p2 = _mm512_unpacklo_epi16(high01, high23);
    const __m512i p3 = _mm512_unpackhi_epi16(high01, high23);
    const __m512i a = _mm512_shuffle_i32x4(p0, p1, 0x44), b = _mm512_shuffle_i32x4(p2, p3, 0x44);
    const __m512i c = _mm512_shuffle_i32x4(p0, p1, 0xee), d = _mm512_shuffle_i32x4(p2, p3, 0xee);
    uint8_t* to = out + kGroup * j;
    _mm512_storeu_si512(to, _mm512_shuffle_i32x4(a, b, 0x88));
    _mm512_storeu_si512(to + 64, _mm512_shuffle_i32x4(a, b, 0xdd));
    _mm512_storeu_si512(to + 128, _mm512_shuffle_i32x4(c, d, 0x88));
    _mm512_storeu_si512(to + 192, _mm512_shuffle_i32x4(c, d, 0xdd));
  }
  const int8_t* const rest[4] = {q[0] + j, q[1] + j, q[2] + j, q[3] + j};
  rows_interleave4(rest, n - j, offset, out + kGroup * j);
}

constexpr void use_avx512_pack(Kernel& kernel) {
  kernel.pack_rows = avx512_pack_rows;
  kernel.interleave4 = avx512_interleave4;
}

}  // namespace
}  // namespace int8tile
