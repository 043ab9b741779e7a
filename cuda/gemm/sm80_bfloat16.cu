// The sm_80 GEMM with bfloat16 outputs.
#include "sm80.cuh"

namespace int8tile::cuda {

template <>
void sm80_gemm<__nv_bfloat16>(const GemmArgs& args, const GemmTile& tile, const Stream& stream) {
  sm80_run<__nv_bfloat16>(args, tile, stream);
}

}  // namespace int8tile::cuda
