// The GEMM of the emulated CUDA backend: plain loops over the kernel's segments and its epilogue.
#include "gemm/gemm.cuh"

#include <algorithm>

#include "gemm/segments.cuh"

namespace int8tile::cuda {
namespace {

constexpr int kTileDepth = 64;

uint32_t product(const int8_t* a, const int8_t* b, int64_t begin, int64_t end) {
  uint32_t sum = 0;
  for (int64_t k = begin; k < end; ++k) sum += static_cast<uint32_t>(int{a[k]} * int{b[k]});
  return sum;
}

int accumulate(const GemmArgs& args, const SegmentPlan& plan, int64_t m, int64_t n) {
  uint32_t acc = 0;
  const int8_t *a = args.a_high + m * args.high_stride, *b = args.b_high + n * args.high_stride;
  for (int step = 0; step < plan.panel_tiles * (kTileDepth / kMmaDepth); ++step) {
    const int64_t begin = step * kMmaDepth;
    acc += product(a, b, begin, std::min<int64_t>(begin + kMmaDepth, args.high_stride));
    if (step + 1 == plan.shift_at) acc <<= kLimbBits;
  }
  acc += product(args.a + m * args.a_stride, args.b + n * args.b_stride, 0, args.k);
  return static_cast<int>(acc);
}

float output(const GemmArgs& args, int acc, int64_t m, int64_t n) {
  const Epilogue& e = args.epilogue;
  return finish(acc, row_scale_at(e, m), col_scale_at(e, n), bias_at(e, n), e);
}

void store(const GemmArgs& args, int acc, int64_t m, int64_t n) {
  const int64_t at = m * args.out_stride + n;
  if (args.type == OutputType::kInt32) {
    static_cast<int32_t*>(args.out)[at] = acc;
    return;
  }
  const float value = output(args, acc, m, n);
  if (args.type == OutputType::kBFloat16)
    return store_float(value, static_cast<__nv_bfloat16*>(args.out) + at);
  if (args.type == OutputType::kFloat16)
    return store_float(value, static_cast<__half*>(args.out) + at);
  float& to = static_cast<float*>(args.out)[at];
  to = args.epilogue.accumulate ? to + value : value;
}

}  // namespace

void gemm(const GemmArgs& args, const Stream&) {
  SegmentPlan plan;
  if (args.high_count)
    plan = SegmentPlan::make(*args.high_count, static_cast<int>(args.high_stride), kTileDepth);
  const int64_t n_end = args.live_columns ? std::min<int64_t>(*args.live_columns, args.n) : args.n;
  for (int64_t m = 0; m < args.m; ++m)
    for (int64_t n = 0; n < n_end; ++n) store(args, accumulate(args, plan, m, n), m, n);
}

}  // namespace int8tile::cuda
