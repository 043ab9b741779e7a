// The sm_80 GEMM with int32 outputs.
#include "sm80.cuh"

namespace int8tile::cuda {

template <>
void sm80_gemm<int32_t>(const GemmArgs& args, const GemmTile& tile, const Stream& stream) {
  sm80_run<int32_t>(args, tile, stream);
}

}  // namespace int8tile::cuda
