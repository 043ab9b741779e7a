// A frozen weight that stays packed: quantised again only where its content has changed.
#include "arithmetic.cuh"
#include "launch.cuh"
#include "quantize.cuh"

namespace int8tile::cuda {
namespace {

constexpr int kSamples = 1024;  // words of the fingerprint, spread over the weight, one a thread
constexpr int kWordBytes = 8;

/// The i-th of `count` words spread evenly over the data, which may start and end anywhere.
__device__ uint64_t sample(const uint8_t* data, int64_t bytes, int64_t words, int64_t count,
                           int64_t i) {
  const int64_t at = (count > 1 ? i * (words - 1) / (count - 1) : 0) * kWordBytes;
  uint64_t word = 0;
  for (int b = 0; b < kWordBytes && at + b < bytes; ++b)
    word |= static_cast<uint64_t>(data[at + b]) << (8 * b);
  return word;
}

/// mark // [2]: the fingerprint, never 0, and whether it differs from the one that was there.
__global__ __launch_bounds__(kSamples) void fingerprint_kernel(const uint8_t* data, int64_t bytes,
                                                               uint32_t* mark) {
  __shared__ uint32_t sum;
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  const int64_t words = (bytes + kWordBytes - 1) / kWordBytes;
  const int64_t count = words < kSamples ? words : kSamples;
  if (threadIdx.x < count) {
    const uint64_t word = sample(data, bytes, words, count, threadIdx.x);
    const uint32_t low = mix(static_cast<uint32_t>(word) ^ mix(threadIdx.x + 1));
    atomicAdd(&sum, mix(low ^ high_word(word)));  // in any order
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  const uint32_t now = sum | 1u;
  mark[1] = now != mark[0];
  mark[0] = now;
}

}  // namespace

void refresh_weight(const MatrixView& weight, bool transposed, const Quantization& how, int8_t* q,
                    float* scale, uint32_t* mark, void* workspace, const Stream& stream) {
  const DeviceGuard guard(stream);
  const int64_t bytes = weight.rows * weight.cols * element_size(weight.dtype);
  launch(stream, fingerprint_kernel, dim3(1), dim3(kSamples), 0,
         static_cast<const uint8_t*>(weight.data), bytes, mark);
  Quantization changed = how;
  changed.wanted = mark + 1;
  quantize(weight, nullptr, transposed, changed, q, scale, workspace, stream);
}

}  // namespace int8tile::cuda
