// How Python passes matrices and options: addresses as integers, tuples and strings.
#pragma once

#include <cstdint>
#include <string>
#include <tuple>

#include "int8tile/check.hpp"
#include "int8tile/types.hpp"

namespace pybind11 {
class module_;
}

namespace int8tile::bindings {

/// Adds the functions of the CUDA backend, or says that there is none.
void bind_cuda(pybind11::module_& m);

using Address = std::uintptr_t;
// (address, dtype code, rows, cols, row stride, column stride); strides in elements
using Matrix = std::tuple<Address, int, int64_t, int64_t, int64_t, int64_t>;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

inline DType dtype_of(int code) {
  require(code >= 0 && code <= 2, "int8tile: dtype code must be 0..2; got ", code);
  return static_cast<DType>(code);
}

inline MatrixView view(const Matrix& m) {
  return {pointer<const void>(std::get<0>(m)),
          dtype_of(std::get<1>(m)),
          std::get<2>(m),
          std::get<3>(m),
          std::get<4>(m),
          std::get<5>(m)};
}

inline OutputView output(const Matrix& m) {
  return {pointer<void>(std::get<0>(m)), dtype_of(std::get<1>(m)), std::get<4>(m)};
}

inline QuantizeSpec spec_of(const std::string& granularity, const std::string& scale,
                            const std::string& rounding = "nearest", int64_t seed = 0,
                            uint32_t gemm_id = 0) {
  require(granularity == "row" || granularity == "tensor",
          "int8tile: granularity must be 'row' or 'tensor'; got '", granularity, "'");
  require(scale == "absmax" || scale == "pow2", "int8tile: scale must be 'absmax' or 'pow2'; got '",
          scale, "'");
  require(rounding == "nearest" || rounding == "stochastic",
          "int8tile: rounding must be 'nearest' or 'stochastic'; got '", rounding, "'");
  return {granularity == "row" ? Granularity::kRow : Granularity::kTensor,
          scale == "absmax" ? ScaleKind::kAbsmax : ScaleKind::kPow2,
          rounding == "nearest" ? Rounding::kNearest : Rounding::kStochastic,
          static_cast<uint64_t>(seed), gemm_id};
}

}  // namespace int8tile::bindings
