// The sm_90 GEMM with bfloat16 outputs.
#include "sm90.cuh"

namespace int8tile::cuda {

template <>
void sm90_gemm<__nv_bfloat16>(const GemmArgs& args, int multiprocessors, const Stream& stream) {
  sm90_run<__nv_bfloat16>(args, multiprocessors, stream);
}

}  // namespace int8tile::cuda
