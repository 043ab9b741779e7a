// Exponents of gains by subtracting bits of floats, as on the CPU, and the columns quantised again.
#include <bit>

#include "element.cuh"
#include "gains.cuh"
#include "launch.cuh"

namespace int8tile::cuda {
namespace {

constexpr int kGainThreads = 256;
constexpr uint32_t kMaxRoom = static_cast<uint32_t>(kMaxGainExponent) << kMantissaBits;

/// How far below 2^kMaxGainExponent a row keeps the gain, in bits of a float; rows whose integers
/// are all 0, because their absmax is tiny or not finite, do not count.
__device__ uint32_t missing_room(uint32_t absmax, uint32_t bits) {
  const uint32_t room = absmax > bits ? absmax - bits : 0;
  return room < kMaxRoom ? kMaxRoom - room : 0;
}

/// One block a slot.
template <class T>
__global__ __launch_bounds__(kGainThreads) void gain_kernel(
    View<T> w, const uint32_t* absmax, int stride, const uint32_t* column_absmax,
    uint32_t threshold, OutlierColumns outliers, int32_t* gain) {
  __shared__ uint32_t shared[2];  // most room that a row lacks, and the largest |w| of the column
  const int64_t t = blockIdx.x;
  if (!outliers.holds(t)) {
    if (threadIdx.x == 0) gain[t] = 0;
    return;
  }
  if (threadIdx.x < 2) shared[threadIdx.x] = 0;
  __syncthreads();
  const int64_t j = outliers.column(t);
  uint32_t missing = 0, largest = 0;
  for (int64_t i = threadIdx.x; i < w.rows; i += kGainThreads) {
    const uint32_t row = absmax[i * stride];
    if (__uint_as_float(row) < kZeroAbsmax || row >= kInfBits) continue;
    const uint32_t bits = abs_bits(w.at(i, j));
    const uint32_t lacks = missing_room(row, bits);
    missing = lacks > missing ? lacks : missing;
    largest = bits > largest ? bits : largest;
  }
  missing = __reduce_max_sync(kAllLanes, missing);
  largest = __reduce_max_sync(kAllLanes, largest);
  if (threadIdx.x % kWarp == 0) {
    atomicMax(&shared[0], missing);
    atomicMax(&shared[1], largest);
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  const uint32_t of_input = column_absmax[j] - threshold;
  const uint32_t of_weight = shared[1] == 0 ? 0 : kMaxRoom - shared[0];
  gain[t] = static_cast<int32_t>((of_input < of_weight ? of_input : of_weight) >> kMantissaBits);
}

template <class T>
__global__ void gain_columns_kernel(View<T> w, const float* scale, OutlierColumns outliers,
                                    int64_t depth_stride, int8_t* values) {
  const int64_t at = linear_index();
  if (at >= w.rows * outliers.capacity) return;
  const int64_t i = at / outliers.capacity, t = at % outliers.capacity;
  if (!outliers.holds(t) || outliers.gain[t] == 0) return;
  const int64_t j = outliers.column(t);
  const float inv = scale[i] > 0.0f ? __fdiv_rn(1.0f, scale[i]) : 0.0f;
  const float gained = __fmul_rn(w.at(i, j), power_of_two(outliers.gain[t]));
  values[i * depth_stride + j] =
      static_cast<int8_t>(round_nearest(__fmul_rn(gained, inv), static_cast<float>(kInt8Max)));
}

}  // namespace

void choose_gains(const GainWeight& weight, const Quantization& how, const uint32_t* column_absmax,
                  float threshold, const OutlierColumns& outliers, int32_t* gain,
                  const Stream& stream) {
  if (!weight.known) row_absmax(weight.weight, nullptr, {}, {weight.absmax, nullptr}, how, stream);
  const int stride = how.granularity == Granularity::kTensor ? 0 : 1;
  with_dtype(weight.weight.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(stream, gain_kernel<T>, dim3(static_cast<unsigned>(outliers.capacity)),
           dim3(kGainThreads), 0, view_as<T>(weight.weight), weight.absmax, stride, column_absmax,
           std::bit_cast<uint32_t>(threshold), outliers, gain);
  });
}

void gain_columns(const MatrixView& weight, const float* scale, const OutlierColumns& outliers,
                  int8_t* values, const Stream& stream) {
  if (weight.rows * outliers.capacity == 0) return;
  with_dtype(weight.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(stream, gain_columns_kernel<T>, linear_grid(weight.rows * outliers.capacity),
           dim3(kLinearThreads), 0, view_as<T>(weight), scale, outliers,
           round_up(weight.cols, kDepthAlign), values);
  });
}

}  // namespace int8tile::cuda
