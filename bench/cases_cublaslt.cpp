// Cases of int8tile_bench on a GPU that int8tile is compared with: GEMMs of cuBLASLt.
#include <cublasLt.h>

#include "device.hpp"
#include "int8tile/cuda.hpp"

namespace int8tile::bench {
namespace {

constexpr std::size_t kWorkspaceBytes = 64 << 20;

void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw std::runtime_error(std::string(what) + ": " + cublasLtGetStatusString(status));
}

/// A handle of cuBLASLt that its function destroys.
template <class Handle, cublasStatus_t (*kDestroy)(Handle)>
struct Owned {
  Owned() = default;
  ~Owned() { kDestroy(handle); }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  Handle handle = nullptr;
};

struct Layout : Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy> {
  Layout(cudaDataType_t type, int64_t rows, int64_t cols) {
    check(cublasLtMatrixLayoutCreate(&handle, type, static_cast<uint64_t>(rows),
                                     static_cast<uint64_t>(cols), rows),
          "layout");
  }
};

struct Types {
  cublasComputeType_t compute;
  cudaDataType_t scale, operand, out;
};
constexpr Types kInt8{CUBLAS_COMPUTE_32I, CUDA_R_32I, CUDA_R_8I, CUDA_R_32I};
constexpr Types kBFloat16{CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_16BF, CUDA_R_16BF};

/// out[m,n] = a[m,k] @ b[n,k].T by the algorithm that cuBLASLt puts first; for cuBLASLt, whose
/// matrices have columns innermost, out.T = b.T transposed @ a.T.
class Product {
 public:
  Product(const Types& types, int64_t m, const Layer& layer)
      : b_(types.operand, layer.k, layer.n),
        a_(types.operand, layer.k, m),
        out_(types.out, layer.n, m),
        workspace_(kWorkspaceBytes) {
    check(cublasLtCreate(&library_.handle), "cublasLtCreate");
    check(cublasLtMatmulDescCreate(&product_.handle, types.compute, types.scale), "product");
    const cublasOperation_t transposed = CUBLAS_OP_T;
    check(cublasLtMatmulDescSetAttribute(product_.handle, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                         sizeof transposed),
          "product");
    Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy> preference;
    check(cublasLtMatmulPreferenceCreate(&preference.handle), "preference");
    check(cublasLtMatmulPreferenceSetAttribute(preference.handle,
                                               CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                               &kWorkspaceBytes, sizeof kWorkspaceBytes),
          "preference");
    int found = 0;
    check(cublasLtMatmulAlgoGetHeuristic(library_.handle, product_.handle, b_.handle, a_.handle,
                                         out_.handle, out_.handle, preference.handle, 1, &chosen_,
                                         &found),
          "heuristic");
    if (found == 0) throw std::runtime_error("cuBLASLt has no algorithm for this shape");
  }

  template <class Scale>
  void run(const void* a, const void* b, void* out, cudaStream_t stream) const {
    const Scale alpha = 1, beta = 0;
    check(cublasLtMatmul(library_.handle, product_.handle, &alpha, b, b_.handle, a, a_.handle,
                         &beta, out, out_.handle, out, out_.handle, &chosen_.algo, workspace_.get(),
                         kWorkspaceBytes, stream),
          "cublasLtMatmul");
  }

 private:
  Owned<cublasLtHandle_t, cublasLtDestroy> library_;
  Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy> product_;
  Layout b_, a_, out_;
  cublasLtMatmulHeuristicResult_t chosen_{};
  DeviceArray<uint8_t> workspace_;
};

template <class Scale, class Operand, class Out>
void time_product(benchmark::State& state, const Types& types, int64_t m, const Layer& layer,
                  const std::vector<Operand>& values) {
  Replay replay;
  const Product product(types, m, layer);
  DeviceArray<Operand> a(m * layer.k), b(layer.n * layer.k);
  a.repeat(values);
  b.repeat(values);
  const DeviceArray<Out> out(m * layer.n);
  replay.time(state, [&] { product.run<Scale>(a.get(), b.get(), out.get(), replay.stream()); });
  count_operations(state, m, layer);
}

void run_int8(benchmark::State& state, int64_t m, Layer layer) {
  time_product<int32_t, int8_t, int32_t>(state, kInt8, m, layer, random_int8());
}

void run_bfloat16(benchmark::State& state, int64_t m, Layer layer) {
  time_product<float, uint16_t, uint16_t>(state, kBFloat16, m, layer,
                                          to_bfloat16(normal(kDrawn, 1.0f, 0)));
}

void add_all() {
  if (!cuda::unavailable().empty()) return;  // cases_cuda.cpp says why
  benchmark::AddCustomContext("cublaslt", std::to_string(cublasLtGetVersion()));
  for (const Layer& layer : kLayers)
    for (const int64_t m : kDeviceTokens) {
      add_on_device("cublaslt/int8" + shape_name(layer, m), run_int8, m, layer);
      add_on_device("cublaslt/bfloat16" + shape_name(layer, m), run_bfloat16, m, layer);
    }
}

const CaseFile cases(add_all);

}  // namespace
}  // namespace int8tile::bench
