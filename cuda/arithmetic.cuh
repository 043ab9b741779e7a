// Scales, rounding and limbs of one element, bit for bit those of the CPU (cpp/README.md).
// Every product and sum is an intrinsic that rounds once and is never fused.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "int8tile/types.hpp"

namespace int8tile::cuda {

constexpr uint32_t kAbsMask = 0x7fffffff;
constexpr uint32_t kInfBits = 0x7f800000;
constexpr uint32_t kNanBits = 0x7fc00000;
constexpr uint32_t kMantissaMask = 0x007fffff;
constexpr uint32_t kSignAndExponent = 0xff800000;
constexpr int kExponentBias = 127, kMantissaBits = 23;

__device__ inline uint32_t abs_bits(float value) { return __float_as_uint(value) & kAbsMask; }

/// 2^exponent, of a normal float.
__device__ inline float power_of_two(int exponent) {
  return __uint_as_float(static_cast<uint32_t>(kExponentBias + exponent) << kMantissaBits);
}

struct Scale {
  float scale;  // real units per integer step
  float inv;    // 0 for an all-zero or non-finite row
  int shift;    // outliers step by 2^shift
};

/// From the bits of the absmax of the regular and of the outlier part.
__device__ inline Scale make_scale(uint32_t regular, uint32_t outlier, ScaleKind kind,
                                   int outlier_bits) {
  const uint32_t largest = regular > outlier ? regular : outlier;
  if (largest >= kInfBits) return {__uint_as_float(kNanBits), 0.0f, 0};
  if (__uint_as_float(largest) < kZeroAbsmax) return {0.0f, 0.0f, 0};
  const float outlier_absmax = __uint_as_float(outlier);
  float scale = fmaxf(__fdiv_rn(__uint_as_float(regular), static_cast<float>(kInt8Max)),
                      __fdiv_rn(outlier_absmax, static_cast<float>(kOutlierMax)));
  if (kind == ScaleKind::kPow2)
    scale = __uint_as_float((__float_as_uint(scale) + kMantissaMask) & kSignAndExponent);
  const float inv = __fdiv_rn(1.0f, scale);
  const int bit_width = 32 - __clz(__float2int_rn(__fmul_rn(outlier_absmax, inv)));
  const int shift = bit_width - (outlier_bits - 1);
  return {scale, inv, shift > 0 ? shift : 0};
}

__device__ inline float clamp(float value, float limit) {
  return fminf(fmaxf(value, -limit), limit);
}

/// A NaN (a non-finite value times the inv 0 of its row) becomes 0.
__device__ inline int round_nearest(float value, float limit) {
  return value == value ? __float2int_rn(clamp(value, limit)) : 0;
}

__device__ inline uint32_t mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

__device__ inline uint32_t high_word(uint64_t value) { return static_cast<uint32_t>(value >> 32); }

/// The start of the counter: mix(seed ^ hi32(seed) ^ id).
__device__ inline uint32_t rounding_base(int64_t seed, uint32_t gemm_id) {
  const auto bits = static_cast<uint64_t>(seed);
  return mix(static_cast<uint32_t>(bits) ^ high_word(bits) ^ gemm_id);
}

/// floor(value + r * 2^-16) with the 16 random bits of the element `index`.
__device__ inline int round_stochastic(float value, uint32_t base, uint64_t index) {
  if (value != value) return 0;
  const uint32_t random = mix(mix(base ^ high_word(index)) ^ static_cast<uint32_t>(index)) >> 16;
  const float step = __fmul_rn(static_cast<float>(static_cast<int>(random)), 1.0f / 65536.0f);
  return static_cast<int>(clamp(floorf(__fadd_rn(value, step)), static_cast<float>(kInt8Max)));
}

/// Largest |integer| of an outlier in units of its step.
constexpr int outlier_limit(int outlier_bits) { return (1 << (outlier_bits - 1)) - 1; }

/// The 15-bit integer of an outlier value; its limbs are v >> 7 and v & 127.
__device__ inline int quantize_outlier(float value, const Scale& scale, int limit) {
  const float scaled = __fmul_rn(__fmul_rn(value, scale.inv), power_of_two(-scale.shift));
  return round_nearest(scaled, static_cast<float>(limit)) * (1 << scale.shift);
}

constexpr int kLimbMask = (1 << kLimbBits) - 1;
__device__ inline int8_t high_limb(int v) { return static_cast<int8_t>(v >> kLimbBits); }
__device__ inline int8_t low_limb(int v) { return static_cast<int8_t>(v & kLimbMask); }

/// Scales of the rows (or columns) of a matrix, found from their absmax.
struct ScaleSource {
  const uint32_t* regular;  // bits of the absmax
  const uint32_t* outlier;  // null: no outliers
  int stride;               // 0: one scale for the tensor
  ScaleKind kind;
  int outlier_bits;

  __device__ Scale of(int64_t i) const {
    return make_scale(regular[i * stride], outlier ? outlier[i * stride] : 0u, kind, outlier_bits);
  }
};

}  // namespace int8tile::cuda
