// bfloat16 for the emulated CUDA runtime, by the core's own conversions.
#pragma once

#include "kernels/rows.hpp"

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 value) { return int8tile::bfloat16_float(value.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return {int8tile::float_bfloat16(value)}; }
