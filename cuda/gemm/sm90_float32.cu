// The sm_90 GEMM with float32 outputs.
#include "sm90.cuh"

namespace int8tile::cuda {

template <>
void sm90_gemm<float>(const GemmArgs& args, int multiprocessors, const Stream& stream) {
  sm90_run<float>(args, multiprocessors, stream);
}

}  // namespace int8tile::cuda
