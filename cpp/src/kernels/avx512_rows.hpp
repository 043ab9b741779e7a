// AVX-512 row loops where the compiler's own vectors are far from the memory's speed: it turns
// each comparison into mask arithmetic. Same results as rows.hpp, bit for bit.
#pragma once

#include <immintrin.h>

#include "rows.hpp"

namespace int8tile {
namespace {

constexpr int kLanes = 16;
constexpr int kQuad = 4 * kLanes;  // floats that make one vector of int8

#define INT8TILE_INLINE static inline __attribute__((always_inline))

INT8TILE_INLINE __mmask16 first_lanes(int64_t n) {
  return n >= kLanes ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1);
}

INT8TILE_INLINE __m512i abs_bits(__m512 value) {
  return _mm512_and_si512(_mm512_castps_si512(value), _mm512_set1_epi32(kAbsMask));
}

uint32_t avx512_absmax_bits(const float* x, const uint32_t* mask, int64_t n) {
  __m512i largest[4];
  for (__m512i& each : largest) each = _mm512_setzero_si512();
  const __m512i all = _mm512_set1_epi32(kAbsMask);
  const auto bits = [&](int64_t j) {
    const __m512i keep = mask ? _mm512_loadu_si512(mask + j) : all;
    return _mm512_and_si512(_mm512_castps_si512(_mm512_loadu_ps(x + j)), keep);
  };
  int64_t j = 0;
  for (; j + kQuad <= n; j += kQuad)
    for (int v = 0; v < 4; ++v) largest[v] = _mm512_max_epu32(largest[v], bits(j + v * kLanes));
  for (; j < n; j += kLanes) {
    const __mmask16 lanes = first_lanes(n - j);
    const __m512i keep = mask ? _mm512_maskz_loadu_epi32(lanes, mask + j) : all;
    const __m512i value = _mm512_castps_si512(_mm512_maskz_loadu_ps(lanes, x + j));
    largest[0] = _mm512_max_epu32(largest[0], _mm512_and_si512(value, keep));
  }
  return _mm512_reduce_max_epu32(_mm512_max_epu32(_mm512_max_epu32(largest[0], largest[1]),
                                                  _mm512_max_epu32(largest[2], largest[3])));
}

template <bool kFiniteOnly>
void column_absmax_of(const float* x, float fold, int64_t n, uint32_t* acc) {
  const __m512 factor = _mm512_set1_ps(fold);
  const __m512i inf = _mm512_set1_epi32(kInfBits);
  const auto merge = [&](__m512 value, __m512i old) {
    const __m512i bits = abs_bits(_mm512_mul_ps(value, factor));
    if (!kFiniteOnly) return _mm512_max_epu32(old, bits);
    return _mm512_mask_max_epu32(old, _mm512_cmplt_epu32_mask(bits, inf), old, bits);
  };
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes)
    _mm512_storeu_si512(acc + j, merge(_mm512_loadu_ps(x + j), _mm512_loadu_si512(acc + j)));
  if (j < n) {
    const __mmask16 lanes = first_lanes(n - j);
    const __m512i old = _mm512_maskz_loadu_epi32(lanes, acc + j);
    _mm512_mask_storeu_epi32(acc + j, lanes, merge(_mm512_maskz_loadu_ps(lanes, x + j), old));
  }
}

void avx512_column_absmax(const float* x, float fold, int64_t n, bool finite_only, uint32_t* acc) {
  finite_only ? column_absmax_of<true>(x, fold, n, acc) : column_absmax_of<false>(x, fold, n, acc);
}

// Clamped to +-127 and rounded to nearest even; NaN, which only a row or column without a scale
// holds, becomes 0.
INT8TILE_INLINE __m512i round_int8(__m512 value) {
  const __mmask16 ordered = _mm512_cmp_ps_mask(value, value, _CMP_ORD_Q);
  value = _mm512_min_ps(value, _mm512_set1_ps(127.0f));
  value = _mm512_max_ps(value, _mm512_set1_ps(-127.0f));
  return _mm512_maskz_cvt_roundps_epi32(ordered, value,
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// floor(value + r * 2^-16), clamped; see round_stochastic.
INT8TILE_INLINE __m512i round_int8(__m512 value, RoundingKey key, int64_t j) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i low = _mm512_add_epi32(
      lane, _mm512_set1_epi32(static_cast<int32_t>(key.low + static_cast<uint32_t>(j))));
  __m512i h = _mm512_xor_si512(low, _mm512_set1_epi32(static_cast<int32_t>(key.key)));
  h = _mm512_xor_si512(h, _mm512_srli_epi32(h, 16));
  h = _mm512_mullo_epi32(h, _mm512_set1_epi32(0x7feb352d));
  h = _mm512_xor_si512(h, _mm512_srli_epi32(h, 15));
  h = _mm512_mullo_epi32(h, _mm512_set1_epi32(static_cast<int32_t>(0x846ca68b)));
  const __m512i random = _mm512_srli_epi32(_mm512_xor_si512(h, _mm512_srli_epi32(h, 16)), 16);
  const __m512 part = _mm512_mul_ps(_mm512_cvtepi32_ps(random), _mm512_set1_ps(1.0f / 65536.0f));
  const __mmask16 ordered = _mm512_cmp_ps_mask(value, value, _CMP_ORD_Q);
  value = _mm512_roundscale_ps(_mm512_add_ps(value, part), _MM_FROUND_TO_NEG_INF);
  value = _mm512_min_ps(value, _mm512_set1_ps(127.0f));
  value = _mm512_max_ps(value, _mm512_set1_ps(-127.0f));
  return _mm512_maskz_cvttps_epi32(ordered, value);
}

// Four vectors of int32 in [-127, 127] to one of int8, in order.
INT8TILE_INLINE __m512i narrow(__m512i v0, __m512i v1, __m512i v2, __m512i v3) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(
      order, _mm512_packs_epi16(_mm512_packs_epi32(v0, v1), _mm512_packs_epi32(v2, v3)));
}

// q[j] = quantised(scaled(lanes, j), j)
template <class Scaled, class Round>
INT8TILE_INLINE void quantize_with(int64_t n, int8_t* q, const Scaled& scaled, const Round& round) {
  constexpr __mmask16 kAll = 0xffff;
  int64_t j = 0;
  for (; j + kQuad <= n; j += kQuad)
    _mm512_storeu_si512(
        q + j, narrow(round(scaled(kAll, j), j), round(scaled(kAll, j + kLanes), j + kLanes),
                      round(scaled(kAll, j + 2 * kLanes), j + 2 * kLanes),
                      round(scaled(kAll, j + 3 * kLanes), j + 3 * kLanes)));
  for (; j < n; j += kLanes) {
    const __mmask16 lanes = first_lanes(n - j);
    _mm_mask_storeu_epi8(q + j, lanes, _mm512_cvtepi32_epi8(round(scaled(lanes, j), j)));
  }
}

void avx512_quantize_row(const float* x, int64_t n, float inv, int8_t* q) {
  const __m512 factor = _mm512_set1_ps(inv);
  quantize_with(
      n, q,
      [&](__mmask16 lanes, int64_t j) {
        return _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + j), factor);
      },
      [](__m512 value, int64_t) { return round_int8(value); });
}

void avx512_quantize_row_stochastic(const float* x, int64_t n, float inv, RoundingKey key,
                                    int8_t* q) {
  const __m512 factor = _mm512_set1_ps(inv);
  quantize_with(
      n, q,
      [&](__mmask16 lanes, int64_t j) {
        return _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + j), factor);
      },
      [&](__m512 value, int64_t j) { return round_int8(value, key, j); });
}

INT8TILE_INLINE __m512 column_scaled(const float* x, __m512 fold, const float* inv, __mmask16 lanes,
                                     int64_t j) {
  const __m512 value = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + j), fold);
  return _mm512_mul_ps(value, _mm512_maskz_loadu_ps(lanes, inv + j));
}

void avx512_quantize_columns(const float* x, float fold, const float* inv, int64_t n, int8_t* q) {
  const __m512 factor = _mm512_set1_ps(fold);
  quantize_with(
      n, q, [&](__mmask16 lanes, int64_t j) { return column_scaled(x, factor, inv, lanes, j); },
      [](__m512 value, int64_t) { return round_int8(value); });
}

void avx512_quantize_columns_stochastic(const float* x, float fold, const float* inv, int64_t n,
                                        RoundingKey key, int8_t* q) {
  const __m512 factor = _mm512_set1_ps(fold);
  quantize_with(
      n, q, [&](__mmask16 lanes, int64_t j) { return column_scaled(x, factor, inv, lanes, j); },
      [&](__m512 value, int64_t j) { return round_int8(value, key, j); });
}

void avx512_column_sum_int8(const int8_t* q, int64_t n, int32_t* acc) {
  for (int64_t j = 0; j < n; j += kLanes) {
    const __mmask16 lanes = first_lanes(n - j);
    const __m512i wide = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(lanes, q + j));
    const __m512i old = _mm512_maskz_loadu_epi32(lanes, acc + j);
    _mm512_mask_storeu_epi32(acc + j, lanes, _mm512_add_epi32(old, wide));
  }
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

constexpr void use_avx512_rows(Kernel& kernel) {
  kernel.absmax_bits = avx512_absmax_bits;
  kernel.column_absmax = avx512_column_absmax;
  kernel.quantize_row = avx512_quantize_row;
  kernel.quantize_row_stochastic = avx512_quantize_row_stochastic;
  kernel.quantize_columns = avx512_quantize_columns;
  kernel.quantize_columns_stochastic = avx512_quantize_columns_stochastic;
  kernel.column_sum_int8 = avx512_column_sum_int8;
  kernel.interleave4 = avx512_interleave4;
}

}  // namespace
}  // namespace int8tile
