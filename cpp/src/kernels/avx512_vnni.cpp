// The AVX-512 VNNI kernel: vpdpbusd on a 6 x 64 register tile (24 accumulators, 4 vectors of B and
// one broadcast of A). The instruction multiplies unsigned by signed bytes, so B is stored plus
// 128 and the accumulators start from compensation = -128 * (sum of the row of A).
#include <immintrin.h>

#include "avx512_pack.hpp"
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
  use_avx512_pack(kernel);
  kernel.float16_to_float = float16_to_float;
  kernel.row_sum = row_sum;
  kernel.peak = peak;
  return kernel;
}

}  // namespace

constinit const Kernel kAvx512VnniKernel = make_kernel();

}  // namespace int8tile
