// Row loops shared by all kernels, written so that the compiler vectorises them with the flags of
// the file that includes them. Everything is in an unnamed namespace: each instruction set gets
// its own copy, and none can leak into another.
#pragma once

#include "kernel.hpp"

namespace int8tile {
namespace {

constexpr uint32_t kAbsMask = 0x7fffffff;
constexpr uint32_t kInfBits = 0x7f800000;

inline uint32_t bits_of(float value) { return __builtin_bit_cast(uint32_t, value); }
inline float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline uint32_t abs_bits(float value) { return bits_of(value) & kAbsMask; }

// Round to nearest even of |value| < 2^22: adding 1.5 * 2^23 leaves the integer in the low bits.
inline int32_t round_even(float value) {
  return __builtin_bit_cast(int32_t, value + 12582912.0f) - 0x4b400000;
}

inline float clamp_int8(float value) {
  value = value < 127.0f ? value : 127.0f;
  return value > -127.0f ? value : -127.0f;
}

// A NaN product (a non-finite value times the zero inv of its row or column) becomes 0.
inline float zero_nan(float value) { return value == value ? value : 0.0f; }

// floor(value + r * 2^-16) with 16 random bits r; |value| <= 2^15 or so.
inline int32_t round_stochastic(float value, RoundingKey key, uint32_t j) {
  const uint32_t random = mix(key.key ^ (key.low + j)) >> 16;
  const float moved = value + static_cast<float>(static_cast<int32_t>(random)) * (1.0f / 65536.0f);
  const int32_t truncated = static_cast<int32_t>(moved);
  return truncated - (static_cast<float>(truncated) > moved);
}

inline float bfloat16_float(uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }

inline uint16_t float_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>((bits & kAbsMask) > kInfBits ? (bits >> 16 | 0x40) : rounded);
}

// Branch-free, and free of subnormal float32, which a thread set to flush them would read as 0: a
// subnormal half is m * 2^-24 = (2^-14 + m * 2^-24) - 2^-14.
inline float float16_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t rest = static_cast<uint32_t>(half & 0x7fff) << 13;
  const uint32_t normal = rest + 0x38000000;  // exponent bias 15 to 127
  const uint32_t subnormal = bits_of(float_of(rest + 0x38800000) - float_of(0x38800000));
  const uint32_t finite = rest < 0x00800000 ? subnormal : normal;
  return float_of(sign | (rest >= 0x0f800000 ? rest | kInfBits : finite));
}

inline uint16_t float_float16(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t magnitude = bits & kAbsMask;
  const uint32_t sign = bits >> 16 & 0x8000;
  // Normal halves: rebase the exponent, then round to nearest even on the 13 dropped bits.
  const uint32_t normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  // Subnormal halves: adding 0.5 aligns the mantissa so that the hardware rounds it.
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
  uint32_t half = magnitude < 0x38800000 ? subnormal : normal;
  half = magnitude >= 0x477ff000 ? 0x7c00 : half;
  half = magnitude > kInfBits ? 0x7e00 : half;
  return static_cast<uint16_t>(sign | half);
}

void rows_bfloat16_to_float(const uint16_t* in, int64_t n, float* out) {
  for (int64_t j = 0; j < n; ++j) out[j] = bfloat16_float(in[j]);
}

void rows_float16_to_float(const uint16_t* in, int64_t n, float* out) {
  for (int64_t j = 0; j < n; ++j) out[j] = float16_float(in[j]);
}

void rows_float_to_bfloat16(const float* in, int64_t n, uint16_t* out) {
  for (int64_t j = 0; j < n; ++j) out[j] = float_bfloat16(in[j]);
}

void rows_float_to_float16(const float* in, int64_t n, uint16_t* out) {
  for (int64_t j = 0; j < n; ++j) out[j] = float_float16(in[j]);
}

uint32_t rows_absmax_bits(const float* x, const uint32_t* mask, int64_t n) {
  uint32_t largest = 0;
  if (mask == nullptr) {
    for (int64_t j = 0; j < n; ++j) largest = abs_bits(x[j]) > largest ? abs_bits(x[j]) : largest;
  } else {
    for (int64_t j = 0; j < n; ++j) {
      const uint32_t bits = bits_of(x[j]) & mask[j];
      largest = bits > largest ? bits : largest;
    }
  }
  return largest;
}

void rows_column_absmax(const float* const* rows, const float* fold, int count, int64_t n,
                        bool finite_only, uint32_t* acc) {
  const uint32_t limit = finite_only ? kInfBits : 0xffffffffu;
  for (int r = 0; r < count; ++r) {
    const float* x = rows[r];
    const float factor = fold[r];
    for (int64_t j = 0; j < n; ++j) {
      const uint32_t bits = abs_bits(x[j] * factor);
      const uint32_t counted = bits < limit ? bits : 0;
      acc[j] = counted > acc[j] ? counted : acc[j];
    }
  }
}

void rows_column_sum(const float* x, int64_t n, float* acc) {
  for (int64_t j = 0; j < n; ++j) acc[j] += x[j];
}

void rows_quantize_row(const float* x, int64_t n, float inv, int8_t* q) {
  for (int64_t j = 0; j < n; ++j) q[j] = static_cast<int8_t>(round_even(clamp_int8(x[j] * inv)));
}

void rows_quantize_row_stochastic(const float* x, int64_t n, float inv, RoundingKey key,
                                  int8_t* q) {
  for (int64_t j = 0; j < n; ++j)
    q[j] = static_cast<int8_t>(clamp_int8(
        static_cast<float>(round_stochastic(x[j] * inv, key, static_cast<uint32_t>(j)))));
}

void rows_quantize_columns(const float* x, float fold, const float* inv, int64_t n, int8_t* q) {
  for (int64_t j = 0; j < n; ++j)
    q[j] = static_cast<int8_t>(round_even(clamp_int8(zero_nan(x[j] * fold * inv[j]))));
}

void rows_quantize_columns_stochastic(const float* x, float fold, const float* inv, int64_t n,
                                      RoundingKey key, int8_t* q) {
  for (int64_t j = 0; j < n; ++j) {
    const float value = zero_nan(x[j] * fold * inv[j]);
    q[j] = static_cast<int8_t>(
        clamp_int8(static_cast<float>(round_stochastic(value, key, static_cast<uint32_t>(j)))));
  }
}

void rows_gather(const float* x, const int32_t* index, int64_t count, float* out) {
  for (int64_t j = 0; j < count; ++j) out[j] = x[index[j]];
}

void rows_quantize_outliers(const float* x, int64_t count, float inv, int shift, int limit,
                            int8_t* high, int8_t* low) {
  const float step = float_of(static_cast<uint32_t>(127 - shift) << 23);  // 2^-shift
  const float bound = static_cast<float>(limit);
  for (int64_t j = 0; j < count; ++j) {
    float value = x[j] * inv * step;
    value = value < bound ? value : bound;
    value = value > -bound ? value : -bound;
    const int32_t v = round_even(value) * (1 << shift);
    high[j] = static_cast<int8_t>(v >> kLimbShift);
    low[j] = static_cast<int8_t>(v & ((1 << kLimbShift) - 1));
  }
}

int32_t rows_sum(const int8_t* q, int64_t n) {
  int32_t sum = 0;
  for (int64_t j = 0; j < n; ++j) sum += q[j];
  return sum;
}

void rows_column_sum_int8(const int8_t* q, int64_t n, int32_t* acc) {
  for (int64_t j = 0; j < n; ++j) acc[j] += q[j];
}

void rows_pack_rows(const int8_t* q, int64_t row_stride, int rows, int out_rows, int64_t groups,
                    int offset, uint8_t* out) {
  const uint32_t flip = offset == 0 ? 0u : 0x80808080u;  // v + 128 modulo 256 is v ^ 0x80
  for (int64_t g = 0; g < groups; ++g) {
    for (int r = 0; r < rows; ++r) {
      uint32_t dword;
      __builtin_memcpy(&dword, q + r * row_stride + g * kGroup, sizeof dword);
      dword ^= flip;
      __builtin_memcpy(out + (g * out_rows + r) * kGroup, &dword, sizeof dword);
    }
    for (int r = rows; r < out_rows; ++r)
      __builtin_memcpy(out + (g * out_rows + r) * kGroup, &flip, sizeof flip);
  }
}

void rows_interleave4(const int8_t* const q[4], int64_t n, int offset, uint8_t* out) {
  const int8_t *q0 = q[0], *q1 = q[1], *q2 = q[2], *q3 = q[3];
  const uint8_t flip = static_cast<uint8_t>(offset);
  for (int64_t j = 0; j < n; ++j) {
    out[4 * j] = static_cast<uint8_t>(q0[j]) ^ flip;
    out[4 * j + 1] = static_cast<uint8_t>(q1[j]) ^ flip;
    out[4 * j + 2] = static_cast<uint8_t>(q2[j]) ^ flip;
    out[4 * j + 3] = static_cast<uint8_t>(q3[j]) ^ flip;
  }
}

void rows_dequantize(const DequantizeRow& row) {
  for (int64_t j = 0; j < row.cols; ++j) {
    float value = static_cast<float>(row.acc[j]) * row.row_scale * row.col_scale[j];
    if (row.bias != nullptr) value += row.bias[j];
    row.out[j] = row.accumulate ? row.out[j] + value : value;
  }
}

// The general row loops; a kernel replaces those it does better.
constexpr Kernel generic_kernel(const char* name, int nr, int b_offset, void (*tile)(const Tile&)) {
  Kernel kernel{};
  kernel.name = name;
  kernel.nr = nr;
  kernel.b_offset = b_offset;
  kernel.tile = tile;
  kernel.bfloat16_to_float = rows_bfloat16_to_float;
  kernel.float16_to_float = rows_float16_to_float;
  kernel.float_to_bfloat16 = rows_float_to_bfloat16;
  kernel.float_to_float16 = rows_float_to_float16;
  kernel.absmax_bits = rows_absmax_bits;
  kernel.column_absmax = rows_column_absmax;
  kernel.column_sum = rows_column_sum;
  kernel.quantize_row = rows_quantize_row;
  kernel.quantize_row_stochastic = rows_quantize_row_stochastic;
  kernel.quantize_columns = rows_quantize_columns;
  kernel.quantize_columns_stochastic = rows_quantize_columns_stochastic;
  kernel.gather = rows_gather;
  kernel.quantize_outliers = rows_quantize_outliers;
  kernel.row_sum = rows_sum;
  kernel.column_sum_int8 = rows_column_sum_int8;
  kernel.pack_rows = rows_pack_rows;
  kernel.interleave4 = rows_interleave4;
  kernel.dequantize_row = rows_dequantize;
  return kernel;
}

}  // namespace
}  // namespace int8tile
