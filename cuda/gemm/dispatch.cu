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

void gemm(const GemmArgs& args, const Stream& stream) {
  int multiprocessors = 0;
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, stream.device),
        "device attribute");
  const GemmTile tile = choose_tile(args.m, args.n, multiprocessors);
  switch (args.type) {
    case OutputType::kFloat32:
      return sm80_gemm<float>(args, tile, stream);
    case OutputType::kBFloat16:
      return sm80_gemm<__nv_bfloat16>(args, tile, stream);
    case OutputType::kFloat16:
      return sm80_gemm<__half>(args, tile, stream);
    case OutputType::kInt32:
      return sm80_gemm<int32_t>(args, tile, stream);
  }
}

}  // namespace int8tile::cuda
