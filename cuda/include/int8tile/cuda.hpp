// The CUDA backend in plain C++: the three GEMMs of a linear layer on device memory of the caller.
// Start reading here. Nothing allocates and nothing waits for the device.
#pragma once

#include <cstdint>
#include <string>

#include "int8tile/types.hpp"

namespace int8tile::cuda {

/// Rows of int8 operands start at multiples of this many bytes, which a thread copies at once.
inline constexpr int64_t kDepthAlign = 16;

/// What the CUDA runtime says of one device.
struct DeviceFacts {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
};

/// Devices that can be used; 0 without a driver.
int device_count();
/// Why there is no device, in the words of the CUDA runtime; empty where there is one.
std::string unavailable();
/// Throws std::runtime_error where there is no such device.
DeviceFacts device_facts(int device);

/// Where the work goes: a cudaStream_t and the device it belongs to.
struct Stream {
  void* handle = nullptr;
  int device = 0;
};

/// Streams of random bits, for stochastic rounding.
inline constexpr uint32_t kGradInputId = 1, kGradWeightId = 2;

/// How a float matrix becomes int8. The seed is read on the device.
struct Quantization {
  Granularity granularity = Granularity::kRow;
  ScaleKind scale = ScaleKind::kAbsmax;
  Rounding rounding = Rounding::kNearest;
  const int64_t* seed = nullptr;  // device, one value; for stochastic rounding
  uint32_t gemm_id = 0;
  const uint32_t* wanted = nullptr;  // device; where it holds 0 nothing is written. null: it is
};

/// x quantised. Row-major int8 with rows of round_up(cols, 16) bytes, transposed with rows of
/// round_up(rows, 16); what lies beyond the matrix is zero. Low limbs stand at the outlier columns
/// (see `low`). int8 memory starts at multiples of 16 bytes.
///
/// index and count are read on the device only: an index outside the matrix ends the kernel, which
/// the caller sees as a failed launch.
struct QuantizedInput {
  int8_t* values = nullptr;        // [m, round_up(k, 16)]
  int8_t* high = nullptr;          // high limbs [m, round_up(capacity, 16)]
  int8_t* low = nullptr;           // low limbs, likewise, where K is sliced; else they are in place
  int8_t* saved_values = nullptr;  // [k, round_up(m, 16)]; null: not wanted
  int8_t* saved_high = nullptr;    // [capacity, round_up(m, 16)]; null: not wanted
  float* scale = nullptr;          // s_x [m]
  int32_t* index = nullptr;        // outlier columns [capacity], ascending, unused slots -1
  int32_t* count = nullptr;        // [2]: found, overflow
  int32_t* gain = nullptr;         // e [capacity]: outlier columns were divided by 2^e; null: by 1
};

/// Workspace of the calls below in bytes, from shapes alone.
int64_t quantize_workspace(int64_t rows, int64_t cols);
/// packed: of a weight that is packed, and multiplied without gains.
int64_t multiply_workspace(int64_t m, int64_t n, int64_t k, int64_t capacity, bool packed);
int64_t grad_input_workspace(int64_t m, int64_t n, int64_t k, bool packed);
int64_t grad_weight_workspace(int64_t m, int64_t n, int64_t k, int64_t capacity, bool grad_split);
int64_t backward_workspace(int64_t m, int64_t n, int64_t k, int64_t capacity, bool grad_split);

/// The weight that bounds the gains of outlier columns.
struct GainWeight {
  MatrixView weight;           // w [n, k]
  uint32_t* absmax = nullptr;  // [n] bits of its rows, or in [0] those of the tensor
  bool known = false;          // absmax is read; else it is written
};

/// Finds the outlier columns of x and quantises it for the forward GEMM and for backward. With
/// `to.gain` the columns are divided by the gains that x and the weight allow.
void quantize_input(const MatrixView& x, const SplitSpec& split, const Quantization& how,
                    const GainWeight& gains, const QuantizedInput& to, void* workspace,
                    const Stream& stream);

struct Int8Matrix {
  const int8_t* values = nullptr;  // rows of round_up(depth, 16) bytes; null: not packed
  const float* scale = nullptr;    // [rows]
};

/// q and scale of a matrix per row, or per column and transposed; fold // [rows] multiplies first.
void quantize(const MatrixView& x, const float* fold, bool transposed, const Quantization& how,
              int8_t* q, float* scale, void* workspace, const Stream& stream);

/// The same for a contiguous weight that is kept quantised, only where its content has changed
/// since the last call with these q, scale and mark: the device compares a fingerprint of 1,024
/// spread words. mark // [2] device, zeros at first.
void refresh_weight(const MatrixView& weight, bool transposed, const Quantization& how, int8_t* q,
                    float* scale, uint32_t* mark, void* workspace, const Stream& stream);

struct MultiplyArgs {
  int64_t m = 0;
  QuantizedInput input;
  int64_t capacity = 0;
  MatrixView weight;  // w [n, k]; where `packed` is given, its data is only read for gains
  Int8Matrix packed;
  uint32_t* weight_absmax = nullptr;  // see GainWeight; null: found where needed
  Quantization how;
  const float* bias = nullptr;  // [n]; null: none
  OutputView out;               // y [m, n]
};

/// y = x @ w.T + bias.
void linear_multiply(const MultiplyArgs& args, void* workspace, const Stream& stream);

struct GradInputArgs {
  MatrixView grad_output;  // g [m, n]
  MatrixView weight;       // w [n, k]; its data is not read where `packed` is given
  Int8Matrix packed;       // of w.T
  Quantization how;
  OutputView out;  // grad_x [m, k]
};

/// grad_x = g @ w.
void linear_grad_input(const GradInputArgs& args, void* workspace, const Stream& stream);

struct GradWeightArgs {
  MatrixView grad_output;  // g [m, n]
  QuantizedInput input;    // saved_values, saved_high, scale, index, count and gain are read
  int64_t in_features = 0;
  int64_t capacity = 0;
  Quantization how;
  OutputView out;              // grad_w [n, k]
  float* grad_bias = nullptr;  // [n] sums of g; null: not wanted
  bool grad_split = true;      // outlier tokens of g in two limbs
};

/// grad_w = g.T @ x and grad_bias = sum of g over tokens, in the same order as on the CPU.
void linear_grad_weight(const GradWeightArgs& args, void* workspace, const Stream& stream);

/// Both gradients of one g, with two reads of it less than apart; the same results bit for bit.
void linear_backward(const GradInputArgs& input_args, const GradWeightArgs& weight_args,
                     void* workspace, const Stream& stream);

/// Row-major int8 operands of the raw product; depths are multiples of 16.
struct Int8Product {
  int64_t m = 0, n = 0, k = 0;
  const int8_t* a = nullptr;  // [m, k]
  const int8_t* b = nullptr;  // [n, k]
  int64_t high_columns = 0;
  const int8_t* a_high = nullptr;       // [m, high_columns]
  const int8_t* b_high = nullptr;       // [n, high_columns]
  const int32_t* high_count = nullptr;  // device: how many of them are multiplied
  int32_t* out = nullptr;               // [m, n]
};

/// out[m,n] = ((a_high @ b_high.T) << 7) + a @ b.T, exact in int32.
void multiply_int8(const Int8Product& product, const Stream& stream);

}  // namespace int8tile::cuda
