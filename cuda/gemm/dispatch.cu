// Chooses the tile and the kernel of one GEMM from its shape and the device.
#include "../launch.cuh"
#include "gemm.cuh"

namespace int8tile::cuda {

template <class Out>
void sm80_gemm(const GemmArgs& args, const GemmTile& tile, const Stream& stream);
template <>
void sm80_gemm<float>(const GemmArgs&, const GemmTile&, const Stream&);
template <>
void sm80_gemm<__nv_bfloat16>(const GemmArgs&, const GemmTile&, const Stream&);
template <>
void sm80_gemm<__half>(const GemmArgs&, const GemmTile&, const Stream&);
template <>
void sm80_gemm<int32_t>(const GemmArgs&, const GemmTile&, const Stream&);

template <class Out>
void sm90_gemm(const GemmArgs& args, int multiprocessors, const Stream& stream);
template <>
void sm90_gemm<float>(const GemmArgs&, int, const Stream&);
template <>
void sm90_gemm<__nv_bfloat16>(const GemmArgs&, int, const Stream&);
template <>
void sm90_gemm<__half>(const GemmArgs&, int, const Stream&);
template <>
void sm90_gemm<int32_t>(const GemmArgs&, int, const Stream&);

namespace {

#ifdef INT8TILE_SM90A
constexpr bool kHasSm90 = true;
#else
constexpr bool kHasSm90 = false;
#endif

int attribute(cudaDeviceAttr which, const Stream& stream) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, stream.device), "device attribute");
  return value;
}

/// Code for sm_90a runs on compute capability 9.0 and nowhere else, later chips included.
bool is_sm90(const Stream& stream) {
  return attribute(cudaDevAttrComputeCapabilityMajor, stream) == 9 &&
         attribute(cudaDevAttrComputeCapabilityMinor, stream) == 0;
}

template <class Out>
void run(const GemmArgs& args, const Stream& stream) {
  const int multiprocessors = attribute(cudaDevAttrMultiProcessorCount, stream);
  if constexpr (kHasSm90) {
    if (is_sm90(stream)) return sm90_gemm<Out>(args, multiprocessors, stream);
  }
  sm80_gemm<Out>(args, choose_tile(args.m, args.n, multiprocessors), stream);
}

}  // namespace

void gemm(const GemmArgs& args, const Stream& stream) {
  switch (args.type) {
    case OutputType::kFloat32:
      return run<float>(args, stream);
    case OutputType::kBFloat16:
      return run<__nv_bfloat16>(args, stream);
    case OutputType::kFloat16:
      return run<__half>(args, stream);
    case OutputType::kInt32:
      return run<int32_t>(args, stream);
  }
}

}  // namespace int8tile::cuda
