// float16 for the emulated CUDA runtime, by the core's own conversions.
#pragma once

#include "kernels/rows.hpp"

struct __half {
  uint16_t bits;
};
inline float __half2float(__half value) { return int8tile::float16_float(value.bits); }
inline __half __float2half_rn(float value) { return {int8tile::float_float16(value)}; }
