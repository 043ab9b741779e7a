// The general epilogue: every output dtype, and sums of K slices.
#include "int8tile/epilogue.hpp"

#include <cstring>

#include "kernels/kernel.hpp"

namespace int8tile {

void store_row(const Kernel& kernel, const OutputView& out, int64_t row, int64_t col,
               const float* values, int64_t cols) {
  if (cols == 0) return;  // `values` may be null, which memcpy forbids
  const int64_t offset = row * out.row_stride + col;
  switch (out.dtype) {
    case DType::kFloat32:
      std::memcpy(static_cast<float*>(out.data) + offset, values,
                  static_cast<std::size_t>(cols) * sizeof(float));
      return;
    case DType::kBFloat16:
      return kernel.float_to_bfloat16(values, cols, static_cast<uint16_t*>(out.data) + offset);
    case DType::kFloat16:
      return kernel.float_to_float16(values, cols, static_cast<uint16_t*>(out.data) + offset);
  }
}

void dequantize_block(const Kernel& kernel, const Epilogue& epilogue, const int32_t* acc,
                      int64_t stride, int64_t row, int64_t rows, int64_t col, int64_t cols,
                      bool accumulate, float* scratch) {
  const float* bias = epilogue.bias ? epilogue.bias + col : nullptr;
  const bool direct = epilogue.out.dtype == DType::kFloat32;
  for (int64_t r = 0; r < rows; ++r) {
    float* to =
        direct ? static_cast<float*>(epilogue.out.data) + (row + r) * epilogue.out.row_stride + col
               : scratch;
    kernel.dequantize_row({acc + r * stride, cols, epilogue.row_scale[row + r],
                           epilogue.col_scale + col, bias, to, accumulate});
    if (!direct) store_row(kernel, epilogue.out, row + r, col, scratch, cols);
  }
}

}  // namespace int8tile
