// Plain value types shared by every stage: element types, matrix views and quantisation choices.
#pragma once

#include <cstdint>

namespace int8tile {

inline constexpr int kInt8Max = 127;       // symmetric int8: [-127, 127]
inline constexpr int kLimbBits = 7;        // v = 128 * high + low, low in [0, 127]
inline constexpr int kOutlierMax = 16383;  // two limbs hold a sign and 14 bits
inline constexpr int kMinOutlierBits = 8;
inline constexpr int kMaxOutlierBits = 15;
inline constexpr int kMaxGainExponent = 16;   // an outlier column's gain is at most 2^16
inline constexpr float kZeroAbsmax = 1e-30f;  // a row whose absmax is below this counts as zero

enum class DType { kFloat32, kBFloat16, kFloat16 };
constexpr int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }
enum class Granularity { kRow, kTensor };
enum class ScaleKind { kAbsmax, kPow2 };
enum class Rounding { kNearest, kStochastic };

/// A read-only matrix of any strides; strides count elements, not bytes.
struct MatrixView {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;
  int64_t col_stride = 1;
};

/// A writable row-major matrix; the columns of a row are contiguous.
struct OutputView {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t row_stride = 0;
};

/// How a float matrix becomes int8. `gemm_id` names the consumer in the stochastic-rounding
/// counter: 1 grad_input, 2 grad_weight, 0 anything else.
struct QuantizeSpec {
  Granularity granularity = Granularity::kRow;
  ScaleKind scale = ScaleKind::kAbsmax;
  Rounding rounding = Rounding::kNearest;
  uint64_t seed = 0;
  uint32_t gemm_id = 0;
};

/// The outlier split of an activation. A capacity of 0 turns it off.
struct SplitSpec {
  float threshold = 0.0f;  // gamma: a column is an outlier when its finite absmax exceeds this
  int outlier_bits = 12;   // significant bits of an outlier value, sign included
  int64_t capacity = 0;    // the most columns that can be outliers
};

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace int8tile
