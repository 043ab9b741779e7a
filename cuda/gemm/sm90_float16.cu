// The sm_90 GEMM with float16 outputs.
#include "sm90.cuh"

namespace int8tile::cuda {

template <>
void sm90_gemm<__half>(const GemmArgs& args, int multiprocessors, const Stream& stream) {
  sm90_run<__half>(args, multiprocessors, stream);
}

}  // namespace int8tile::cuda
