// The AVX-512 VNNI kernel: vpdpbusd on a 6 x 64 register tile (24 accumulators, 4 vectors of B and
// one broadcast of A). The instruction multiplies unsigned by signed bytes, so B is stored plus
// 128 and the accumulators start from compensation = -128 * (sum of the row of A).
#include <immintrin.h>

#include "avx512_rows.hpp"
#include "unroll.hpp"

namespace int8tile {
namespace {

constexpr int kColumns = 64;

// Inline asm keeps the accumulator in its register and the broadcast out of the instruction's
// memory operand; GCC otherwise spills the one and folds the other.
INT8TILE_INLINE void dot(__m512i& acc, __m512i b, __m512i a) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(b), "v"(a));
}

INT8TILE_INLINE __m512i broadcast4(const int8_t* a) {
  __m512i out;
  asm("vpbroadcastd %1, %0" : "=v"(out) : "m"(*reinterpret_cast<const int32_t*>(a)));
  return out;
}

template <int R, int V>
struct Accumulators {
  __m512i at[R * V];
};

template <int R, int V, int... C>
INT8TILE_INLINE void step_row(Accumulators<R, V>& c, int r, const int8_t* a, const __m512i* b,
                              Indices<C...>) {
  const __m512i four = broadcast4(a + kGroup * r);
  (dot(c.at[r * V + C], b[C], four), ...);
}

// One group of four columns of K.
template <int R, int V, int... I, int... C>
INT8TILE_INLINE void step(Accumulators<R, V>& c, const int8_t* a, const uint8_t* b, Indices<I...>,
                          Indices<C...> columns) {
  const __m512i vectors[V] = {_mm512_loadu_si512(b + 64 * C)...};
  (step_row<R, V>(c, I, a, vectors, columns), ...);
}

template <int R, int V, int... I>
INT8TILE_INLINE void start(Accumulators<R, V>& c, const Tile& t, Indices<I...>) {
  constexpr IndicesOf<R> rows;
  constexpr IndicesOf<V> columns;
  if (t.load) {
    ((c.at[I] = _mm512_loadu_si512(t.acc + (I / V) * kColumns + (I % V) * kLanes)), ...);
    return;
  }
  if (t.high_groups == 0) {
    ((c.at[I] = _mm512_set1_epi32(t.compensation[I / V])), ...);
    return;
  }
  ((c.at[I] = _mm512_setzero_si512()), ...);
  const int8_t* a = t.a_high;
  const uint8_t* b = t.b_high;
  for (int64_t g = t.high_groups; g > 0; --g, a += kGroup * R, b += kGroup * kColumns)
    step<R, V>(c, a, b, rows, columns);
  ((c.at[I] = _mm512_add_epi32(_mm512_slli_epi32(c.at[I], kLimbShift),
                               _mm512_set1_epi32(t.compensation[I / V]))),
   ...);
}

INT8TILE_INLINE void write(const Tile& t, int r, int v, __m512i acc) {
  const __mmask16 lanes = first_lanes(t.cols - v * kLanes);
  __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), _mm512_set1_ps(t.row_scale[r]));
  y = _mm512_mul_ps(y, _mm512_maskz_loadu_ps(lanes, t.col_scale + v * kLanes));
  if (t.bias != nullptr) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(lanes, t.bias + v * kLanes));
  float* out = t.out + r * t.out_stride + v * kLanes;
  if (t.stream && lanes == 0xffff)
    _mm512_stream_ps(out, y);
  else
    _mm512_mask_storeu_ps(out, lanes, y);
}

template <int R, int V, int... I>
void tile_sized(const Tile& t, Indices<I...> all) {
  constexpr IndicesOf<R> rows;
  constexpr IndicesOf<V> columns;
  constexpr int kTurn = kDepthAlign / kGroup;
  Accumulators<R, V> c;
  start<R, V>(c, t, all);
  const int8_t* a = t.a;
  const uint8_t* b = t.b;
  const char* prefetch = t.prefetch;
  int64_t groups = t.groups;
  for (; groups >= kTurn; groups -= kTurn) {
    _mm_prefetch(prefetch, _MM_HINT_T1);
    prefetch += t.prefetch_stride;
    step<R, V>(c, a, b, rows, columns);
    step<R, V>(c, a + kGroup * R, b + kGroup * kColumns, rows, columns);
    step<R, V>(c, a + 2 * kGroup * R, b + 2 * kGroup * kColumns, rows, columns);
    step<R, V>(c, a + 3 * kGroup * R, b + 3 * kGroup * kColumns, rows, columns);
    a += kTurn * kGroup * R;
    b += kTurn * kGroup * kColumns;
  }
  for (; groups > 0; --groups, a += kGroup * R, b += kGroup * kColumns)
    step<R, V>(c, a, b, rows, columns);
  if (t.out == nullptr)
    (_mm512_storeu_si512(t.acc + (I / V) * kColumns + (I % V) * kLanes, c.at[I]), ...);
  else
    (write(t, I / V, I % V, c.at[I]), ...);
}

template <int R>
void tile_rows(const Tile& t) {
  switch ((t.cols + kLanes - 1) / kLanes) {
    case 1:
      return tile_sized<R, 1>(t, IndicesOf<R>{});
    case 2:
      return tile_sized<R, 2>(t, IndicesOf<2 * R>{});
    case 3:
      return tile_sized<R, 3>(t, IndicesOf<3 * R>{});
    default:
      return tile_sized<R, 4>(t, IndicesOf<4 * R>{});
  }
}

void tile(const Tile& t) {
  switch (t.rows) {
    case 1:
      return tile_rows<1>(t);
    case 2:
      return tile_rows<2>(t);
    case 3:
      return tile_rows<3>(t);
    case 4:
      return tile_rows<4>(t);
    case 5:
      return tile_rows<5>(t);
    default:
      return tile_rows<6>(t);
  }
}

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

void pack_six_rows(const int8_t* q, int64_t row_stride, int64_t groups, uint8_t* out) {
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

void pack_rows(const int8_t* q, int64_t row_stride, int rows, int out_rows, int64_t groups,
               int offset, uint8_t* out) {
  if (rows == kTileRows && out_rows == kTileRows && offset == 0)
    return pack_six_rows(q, row_stride, groups, out);
  rows_pack_rows(q, row_stride, rows, out_rows, groups, offset, out);
}

// The instruction reads subnormals whatever the thread's flush modes are.
void float16_to_float(const uint16_t* in, int64_t n, float* out) {
  for (int64_t j = 0; j < n; j += kLanes) {
    const __mmask16 lanes = first_lanes(n - j);
    const __m256i halves = _mm256_maskz_loadu_epi16(lanes, in + j);
    _mm512_mask_storeu_ps(out + j, lanes, _mm512_cvtph_ps(halves));
  }
}

int32_t row_sum(const int8_t* q, int64_t n) {
  __m512i sums = _mm512_setzero_si512();
  const __m512i ones = _mm512_set1_epi8(1);
  int64_t j = 0;
  for (; j + 64 <= n; j += 64) dot(sums, ones, _mm512_loadu_si512(q + j));
  if (j < n) {
    const __mmask64 rest = (uint64_t{1} << (n - j)) - 1;
    dot(sums, ones, _mm512_maskz_loadu_epi8(rest, q + j));
  }
  return _mm512_reduce_add_epi32(sums);
}

// As `dot`, but kept even where nobody reads the result.
INT8TILE_INLINE void dot_always(__m512i& acc, __m512i b, __m512i a) {
  asm volatile("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(b), "v"(a));
}

template <int... I>
int64_t peak_of(int64_t repeats, Indices<I...>) {
  Accumulators<1, sizeof...(I)> c;
  ((c.at[I] = _mm512_set1_epi32(I)), ...);
  const __m512i a = _mm512_set1_epi32(0x01020304), b = _mm512_set1_epi32(0x01010101);
  for (int64_t i = 0; i < repeats; ++i) (dot_always(c.at[I], b, a), ...);
  return repeats * static_cast<int64_t>(sizeof...(I)) * 128;
}

int64_t peak(int64_t repeats) { return peak_of(repeats, IndicesOf<20>{}); }

constexpr Kernel make_kernel() {
  Kernel kernel = generic_kernel("avx512_vnni", kColumns, 128, tile);
  use_avx512_rows(kernel);
  kernel.float16_to_float = float16_to_float;
  kernel.pack_rows = pack_rows;
  kernel.row_sum = row_sum;
  kernel.peak = peak;
  return kernel;
}

}  // namespace

constinit const Kernel kAvx512VnniKernel = make_kernel();

}  // namespace int8tile
