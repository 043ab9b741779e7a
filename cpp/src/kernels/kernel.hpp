// The contract between the library and one instruction set: a register tile and the row loops that
// feed it. Files in this folder include no STL: an inline STL function compiled for AVX-512 can be
// the copy the linker keeps, and would crash older CPUs.
#pragma once

#include <cstdint>

namespace int8tile {

inline constexpr int kTileRows = 6;          // rows of a packed A panel, on every instruction set
inline constexpr int kMaxPanelColumns = 64;  // Kernel::nr divides it
inline constexpr int kGroup = 4;             // values of K that one dot-product lane consumes
inline constexpr int kLimbShift = 7;         // a value is high * 2^7 + low; kLimbBits of types.hpp
inline constexpr int kDepthAlign = 16;       // K is padded to whole turns of the inner loop

/// One register tile: `rows` x `cols` outputs over one block of K.
///
/// acc starts from `acc` (load) or from compensation[row]; if high_groups > 0 the high limbs are
/// multiplied first and their sum is shifted left by 7. It ends in `acc`, or, if `out` is set, as
/// out = fl(fl(acc * row_scale) * col_scale) + bias in float32.
struct Tile {
  const int8_t* a;        // [groups][rows][4]
  const uint8_t* b;       // [groups][nr][4], stored plus Kernel::b_offset
  int64_t groups;         // any number; whole turns are multiples of 4
  const int8_t* a_high;   // [high_groups][rows][4]
  const uint8_t* b_high;  // [high_groups][nr][4]
  int64_t high_groups;
  int rows;  // 1..kTileRows
  int cols;  // 1..nr, columns that exist
  bool load;
  int32_t* acc;                 // [rows][nr]
  const int32_t* compensation;  // [rows]: -b_offset * (sum of the row of A)
  float* out;                   // null: leave the integers in acc
  int64_t out_stride;           // elements
  bool stream;                  // write past the caches; needs 64-byte aligned rows
  const float* row_scale;       // [rows]
  const float* col_scale;       // [cols]
  const float* bias;            // [cols] or null
  const char* prefetch;         // the B panel that comes next, brought into L2 while this one runs
  int64_t prefetch_stride;      // bytes per turn; 0 where there is nothing to fetch
};

/// One row of the general epilogue, for the outputs the register tile does not write itself.
struct DequantizeRow {
  const int32_t* acc;  // [cols]
  int64_t cols;
  float row_scale;
  const float* col_scale;  // [cols]
  const float* bias;       // [cols] or null
  float* out;              // [cols] float32
  bool accumulate;         // out += instead of out =
};

/// The 64-bit counter of stochastic rounding for one run of a row; `low` is the low half of the
/// index of its first element and does not wrap inside the run.
struct RoundingKey {
  uint32_t key;
  uint32_t low;
};

namespace {
// The hash of stochastic rounding. In an unnamed namespace, so that no copy of it compiled for one
// instruction set serves another.
inline uint32_t mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

}  // namespace

struct Kernel {
  const char* name;
  int nr;        // columns of a packed B panel
  int b_offset;  // added to B when packed: 128 where the instruction wants unsigned bytes, else 0

  void (*tile)(const Tile&);

  // Float rows. Bits are those of |x|; at or above 0x7f800000 they mean inf or NaN.
  void (*bfloat16_to_float)(const uint16_t* in, int64_t n, float* out);
  void (*float16_to_float)(const uint16_t* in, int64_t n, float* out);
  void (*float_to_bfloat16)(const float* in, int64_t n, uint16_t* out);
  void (*float_to_float16)(const float* in, int64_t n, uint16_t* out);
  /// Largest bits of a row; `mask` (null: all) holds 0x7fffffff where a column counts, else 0.
  uint32_t (*absmax_bits)(const float* x, const uint32_t* mask, int64_t n);
  /// acc[j] = max(acc[j], bits of rows[r][j] * fold[r]) over `count` rows. With finite_only, inf
  /// and NaN count as 0.
  void (*column_absmax)(const float* const* rows, const float* fold, int count, int64_t n,
                        bool finite_only, uint32_t* acc);
  /// acc[j] += x[j]
  void (*column_sum)(const float* x, int64_t n, float* acc);

  // Float to int8. Every product is rounded to float32: q = clamp(round(fl(fl(x * fold) * inv))).
  void (*quantize_row)(const float* x, int64_t n, float inv, int8_t* q);
  void (*quantize_row_stochastic)(const float* x, int64_t n, float inv, RoundingKey key, int8_t* q);
  void (*quantize_columns)(const float* x, float fold, const float* inv, int64_t n, int8_t* q);
  void (*quantize_columns_stochastic)(const float* x, float fold, const float* inv, int64_t n,
                                      RoundingKey key, int8_t* q);
  /// out[t] = x[index[t]]
  void (*gather)(const float* x, const int32_t* index, int64_t count, float* out);
  /// Limbs of gathered outliers: v = clamp(round(x * inv * 2^-shift), +-limit) << shift.
  void (*quantize_outliers)(const float* x, int64_t count, float inv, int shift, int limit,
                            int8_t* high, int8_t* low);

  // int8 rows.
  int32_t (*row_sum)(const int8_t* q, int64_t n);
  void (*column_sum_int8)(const int8_t* q, int64_t n, int32_t* acc);
  /// out[g][row] = the dword q[row][4g .. 4g+3], each byte plus `offset`; row_stride in bytes.
  void (*pack_rows)(const int8_t* q, int64_t row_stride, int rows, int out_rows, int64_t groups,
                    int offset, uint8_t* out);
  /// out[j] = the dword (q0[j], q1[j], q2[j], q3[j]), each byte plus `offset`.
  void (*interleave4)(const int8_t* const q[4], int64_t n, int offset, uint8_t* out);

  void (*dequantize_row)(const DequantizeRow&);

  /// Repeats independent dot products on registers; returns the operations done. May be null.
  int64_t (*peak)(int64_t repeats);
};

// Constant-initialised: no code of another instruction set runs while the library is loaded.
extern const Kernel kPortableKernel;
extern const Kernel kAvx2Kernel;
extern const Kernel kAvx512VnniKernel;

}  // namespace int8tile
