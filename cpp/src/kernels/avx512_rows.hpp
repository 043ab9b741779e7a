// AVX-512 row loops where the compiler's own vectors are far from the memory's speed: it turns
// each comparison into mask arithmetic. Same results as rows.hpp, bit for bit.
#pragma once

#include <immintrin.h>

#include "rows.hpp"
#include "unroll.hpp"

namespace int8tile {
namespace {

constexpr int kLanes = 16;
constexpr int kQuad = 4 * kLanes;  // floats that make one vector of int8

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

// Several rows at once: the maxima are loaded and stored once for all of them.
template <bool kFiniteOnly, int kRows>
void column_absmax_of(const float* const* rows, const float* fold, int64_t n, uint32_t* acc) {
  const __m512i inf = _mm512_set1_epi32(kInfBits);
  for (int64_t j = 0; j < n; j += kLanes) {
    const __mmask16 lanes = first_lanes(n - j);
    __m512i largest = _mm512_maskz_loadu_epi32(lanes, acc + j);
    for (int r = 0; r < kRows; ++r) {
      const __m512 value = _mm512_maskz_loadu_ps(lanes, rows[r] + j);
      const __m512i bits = abs_bits(_mm512_mul_ps(value, _mm512_set1_ps(fold[r])));
      if (kFiniteOnly)
        largest = _mm512_mask_max_epu32(largest, _mm512_cmplt_epu32_mask(bits, inf), largest, bits);
      else
        largest = _mm512_max_epu32(largest, bits);
    }
    _mm512_mask_storeu_epi32(acc + j, lanes, largest);
  }
}

template <bool kFiniteOnly>
void column_absmax_by_four(const float* const* rows, const float* fold, int count, int64_t n,
                           uint32_t* acc) {
  int r = 0;
  for (; r + 4 <= count; r += 4) column_absmax_of<kFiniteOnly, 4>(rows + r, fold + r, n, acc);
  for (; r < count; ++r) column_absmax_of<kFiniteOnly, 1>(rows + r, fold + r, n, acc);
}

void avx512_column_absmax(const float* const* rows, const float* fold, int count, int64_t n,
                          bool finite_only, uint32_t* acc) {
  finite_only ? column_absmax_by_four<true>(rows, fold, count, n, acc)
              : column_absmax_by_four<false>(rows, fold, count, n, acc);
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

// q[j] = round(scaled(lanes, j), j). The row is in L1 already; what follows it in memory, the next
// row of a contiguous matrix, is fetched meanwhile.
template <class Scaled, class Round>
INT8TILE_INLINE void quantize_with(const float* x, int64_t n, int8_t* q, const Scaled& scaled,
                                   const Round& round) {
  constexpr __mmask16 kAll = 0xffff;
  int64_t j = 0;
  for (; j + kQuad <= n; j += kQuad) {
    __m512i v[4];
    for (int i = 0; i < 4; ++i) {
      const int64_t at = j + i * kLanes;
      _mm_prefetch(reinterpret_cast<const char*>(x + n + at), _MM_HINT_T0);
      v[i] = round(scaled(kAll, at), at);
    }
    _mm512_storeu_si512(q + j, narrow(v[0], v[1], v[2], v[3]));
  }
  for (; j < n; j += kLanes) {
    const __mmask16 lanes = first_lanes(n - j);
    _mm_mask_storeu_epi8(q + j, lanes, _mm512_cvtepi32_epi8(round(scaled(lanes, j), j)));
  }
}

void avx512_quantize_row(const float* x, int64_t n, float inv, int8_t* q) {
  const __m512 factor = _mm512_set1_ps(inv);
  quantize_with(
      x, n, q,
      [&](__mmask16 lanes, int64_t j) {
        return _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + j), factor);
      },
      [](__m512 value, int64_t) { return round_int8(value); });
}

void avx512_quantize_row_stochastic(const float* x, int64_t n, float inv, RoundingKey key,
                                    int8_t* q) {
  const __m512 factor = _mm512_set1_ps(inv);
  quantize_with(
      x, n, q,
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
      x, n, q, [&](__mmask16 lanes, int64_t j) { return column_scaled(x, factor, inv, lanes, j); },
      [](__m512 value, int64_t) { return round_int8(value); });
}

void avx512_quantize_columns_stochastic(const float* x, float fold, const float* inv, int64_t n,
                                        RoundingKey key, int8_t* q) {
  const __m512 factor = _mm512_set1_ps(fold);
  quantize_with(
      x, n, q, [&](__mmask16 lanes, int64_t j) { return column_scaled(x, factor, inv, lanes, j); },
      [&](__m512 value, int64_t j) { return round_int8(value, key, j); });
}

void avx512_gather(const float* x, const int32_t* index, int64_t count, float* out) {
  for (int64_t j = 0; j < count; j += kLanes) {
    const __mmask16 lanes = first_lanes(count - j);
    const __m512i at = _mm512_maskz_loadu_epi32(lanes, index + j);
    const __m512 values =
        _mm512_mask_i32gather_ps(_mm512_setzero_ps(), lanes, at, x, sizeof(float));
    _mm512_mask_storeu_ps(out + j, lanes, values);
  }
}

void avx512_quantize_outliers(const float* x, int64_t count, float inv, int shift, int limit,
                              int8_t* high, int8_t* low) {
  const __m512 factor = _mm512_set1_ps(inv);
  const __m512 step = _mm512_set1_ps(float_of(static_cast<uint32_t>(127 - shift) << 23));
  const __m512 bound = _mm512_set1_ps(static_cast<float>(limit));
  const __m128i bits = _mm_cvtsi32_si128(shift);
  for (int64_t j = 0; j < count; j += kLanes) {
    const __mmask16 lanes = first_lanes(count - j);
    __m512 value = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + j), factor);
    value = _mm512_min_ps(_mm512_mul_ps(value, step), bound);
    value = _mm512_max_ps(value, _mm512_sub_ps(_mm512_setzero_ps(), bound));
    const __m512i v = _mm512_sll_epi32(
        _mm512_cvt_roundps_epi32(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), bits);
    const __m512i low_bits = _mm512_and_si512(v, _mm512_set1_epi32((1 << kLimbShift) - 1));
    _mm_mask_storeu_epi8(high + j, lanes, _mm512_cvtepi32_epi8(_mm512_srai_epi32(v, kLimbShift)));
    _mm_mask_storeu_epi8(low + j, lanes, _mm512_cvtepi32_epi8(low_bits));
  }
}

void avx512_column_sum_int8(const int8_t* q, int64_t n, int32_t* acc) {
  for (int64_t j = 0; j < n; j += kLanes) {
    const __mmask16 lanes = first_lanes(n - j);
    const __m512i wide = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(lanes, q + j));
    const __m512i old = _mm512_maskz_loadu_epi32(lanes, acc + j);
    _mm512_mask_storeu_epi32(acc + j, lanes, _mm512_add_epi32(old, wide));
  }
}

constexpr void use_avx512_rows(Kernel& kernel) {
  kernel.absmax_bits = avx512_absmax_bits;
  kernel.column_absmax = avx512_column_absmax;
  kernel.quantize_row = avx512_quantize_row;
  kernel.quantize_row_stochastic = avx512_quantize_row_stochastic;
  kernel.quantize_columns = avx512_quantize_columns;
  kernel.quantize_columns_stochastic = avx512_quantize_columns_stochastic;
  kernel.gather = avx512_gather;
  kernel.quantize_outliers = avx512_quantize_outliers;
  kernel.column_sum_int8 = avx512_column_sum_int8;
}

}  // namespace
}  // namespace int8tile
