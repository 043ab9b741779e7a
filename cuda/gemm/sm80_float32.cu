// The sm_80 GEMM with float32 outputs.
#include "sm80.cuh"

namespace int8tile::cuda {

template <>
void sm80_gemm<float>(const GemmArgs& args, const GemmTile& tile, const Stream& stream) {
  sm80_run<float>(args, tile, stream);
}

}  // namespace int8tile::cuda
