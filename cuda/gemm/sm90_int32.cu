// The sm_90 GEMM with int32 outputs.
#include "sm90.cuh"

namespace int8tile::cuda {

template <>
void sm90_gemm<int32_t>(const GemmArgs& args, int multiprocessors, const Stream& stream) {
  sm90_run<int32_t>(args, multiprocessors, stream);
}

}  // namespace int8tile::cuda
