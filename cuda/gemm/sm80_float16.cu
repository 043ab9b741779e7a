// The sm_80 GEMM with float16 outputs.
#include "sm80.cuh"

namespace int8tile::cuda {

template <>
void sm80_gemm<__half>(const GemmArgs& args, const GemmTile& tile, const Stream& stream) {
  sm80_run<__half>(args, tile, stream);
}

}  // namespace int8tile::cuda
