// Segmented-K int8 GEMM for compute capability 9.0: TMA, wgmma, one producer and its consumers.
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include <algorithm>
#include <cute/arch/copy_sm90_tma.hpp>

#include "gemm.cuh"
#include "sm90_roles.cuh"
#include "store.cuh"
#include "tensor_map.cuh"

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "the sm_90 GEMM is for sm_90a alone: wgmma and setmaxnreg are on no other chip"
#endif

namespace int8tile::cuda {

template <class Out>
struct Sm90Args {
  CUtensorMap a, b, a_high, b_high;
  int m, n;
  int depth;                    // of the regular segment, a multiple of 16
  int panel_depth;              // bytes in a row of a panel
  const int32_t* high_count;    // device; null: no panels
  const int32_t* live_columns;  // device; null: all
  OutputTile<Out> out;
};

/// The accumulators of one warpgroup and what is multiplied into them. wgmma writes registers while
/// the code goes on: each fence keeps the compiler from moving their other uses across it.
template <class Mma, class A, class B, class Accumulator>
struct WarpgroupProduct {
  Mma& mma;
  const A& a;  // descriptors of shared memory, (1, rows, steps of 32, stages)
  const B& b;
  Accumulator& acc;

  CUTE_DEVICE void start() { mma.accumulate_ = SM90::GMMA::ScaleOut::Zero; }

  /// At most `steps` steps of 32 of the stage; returns how many, all of them finished.
  CUTE_DEVICE int multiply_panel(int stage, int steps) {
    steps = min(steps, static_cast<int>(size<2>(a)));
    warpgroup_fence_operand(acc);
    CUTE_NO_UNROLL
    for (int step = 0; step < steps; ++step) {
      warpgroup_arrive();
      multiply_step(step, stage);
      warpgroup_commit_batch();
    }
    warpgroup_wait<0>();
    warpgroup_fence_operand(acc);
    return steps;
  }

  /// Nothing is in flight here: multiply_panel waited for all.
  CUTE_DEVICE void shift() { shift_limb(acc); }

  /// Starts one K tile, and returns when only that is in flight.
  CUTE_DEVICE void multiply(int stage) {
    warpgroup_fence_operand(acc);
    warpgroup_arrive();
    CUTE_UNROLL
    for (int step = 0; step < size<2>(a); ++step) multiply_step(step, stage);
    warpgroup_commit_batch();
    warpgroup_wait<1>();
  }

  CUTE_DEVICE void finish() {
    warpgroup_wait<0>();
    warpgroup_fence_operand(acc);
  }

 private:
  CUTE_DEVICE void multiply_step(int step, int stage) {
    cute::gemm(mma, a(_, _, step, stage), b(_, _, step, stage), acc);
    mma.accumulate_ = SM90::GMMA::ScaleOut::One;
  }
};

template <class Out, class L>
__global__ __cluster_dims__(L::kCluster, 1, 1)
    __launch_bounds__(L::kThreads,
                      L::kBlocks) void sm90_kernel(const __grid_constant__ Sm90Args<Out> args) {
  extern __shared__ __align__(1024) unsigned char storage[];
  auto& shared = *reinterpret_cast<typename L::Shared*>(storage);
  const int group = cutlass::canonical_warp_group_idx();
  const bool producing = group == 0;
  const int rank = static_cast<int>(cute::block_rank_in_cluster());

  using Pipeline = typename L::Pipeline;
  typename Pipeline::Params params;
  params.transaction_bytes = L::kStageBytes;
  params.role = producing ? Pipeline::ThreadCategory::Producer : Pipeline::ThreadCategory::Consumer;
  params.is_leader = threadIdx.x == 0;
  params.num_consumers = L::kConsumerThreads;
  Pipeline pipeline(shared.pipeline, params, Shape<Int<L::kCluster>, _1, _1>{});
  // Barriers exist in all blocks before any of them sends there.
  cute::cluster_arrive_relaxed();
  cute::cluster_wait();

  // All threads of the cluster read the same values, so they agree on every count of tiles.
  const int wanted = args.live_columns ? min(*args.live_columns, args.n) : args.n;
  const Work work{TileGrid::make<L>(args.m, wanted),
                  args.high_count ? SegmentPlan::make(*args.high_count, args.panel_depth, L::kDepth)
                                  : SegmentPlan{},
                  (args.depth + L::kDepth - 1) / L::kDepth,
                  static_cast<int>(blockIdx.x) / L::kCluster,
                  static_cast<int>(gridDim.x) / L::kCluster};

  if (producing) {
    if constexpr (L::kConsumerRegisters > 0)
      cutlass::arch::warpgroup_reg_dealloc<L::kProducerRegisters>();
    if (threadIdx.x > 0) return;
    produce(pipeline, work, [&](const Unit& unit, int tile, auto in_panel, const auto& writing) {
      constexpr bool kPanel = decltype(in_panel)::value;
      const CUtensorMap& map_a = kPanel ? args.a_high : args.a;
      const CUtensorMap& map_b = kPanel ? args.b_high : args.b;
      const int stage = writing.index(), k = tile * L::kDepth;
      uint64_t* barrier = pipeline.producer_get_barrier(writing);
      int8_t *to_a = shared.a + L::a_at(stage), *to_b = shared.b + L::b_at(stage, rank);
      constexpr auto kHint = static_cast<uint64_t>(TMA::CacheHintSm90::EVICT_NORMAL);
      SM90_TMA_LOAD_2D::copy(&map_a, barrier, kHint, to_a, k, L::row_a(unit, rank));
      const int n = L::row_b(unit, rank);
      if constexpr (L::kCluster > 1)
        SM90_TMA_LOAD_MULTICAST_2D::copy(&map_b, barrier, (1 << L::kCluster) - 1, kHint, to_b, k,
                                         n);
      else
        SM90_TMA_LOAD_2D::copy(&map_b, barrier, kHint, to_b, k, n);
    });
  } else {
    if constexpr (L::kConsumerRegisters > 0)
      cutlass::arch::warpgroup_reg_alloc<L::kConsumerRegisters>();
    typename L::Mma mma;
    // Descriptors are the same in all lanes of a warpgroup, so they take its first thread's.
    const auto of_group = mma.get_slice((group - 1) * L::kGroupThreads);
    const auto of_thread = mma.get_slice(threadIdx.x - L::kGroupThreads);
    Tensor smem_a = make_tensor(make_smem_ptr(shared.a), typename L::SharedA{});
    Tensor smem_b = make_tensor(make_smem_ptr(shared.b), typename L::SharedB{});
    Tensor frag_a = of_group.make_fragment_A(of_group.partition_A(smem_a));
    Tensor frag_b = of_group.make_fragment_B(of_group.partition_B(smem_b));
    const auto tile = make_shape(Int<L::kTileM>{}, Int<L::kTileN>{});
    Tensor acc = partition_fragment_C(mma, tile);
    Tensor crd = of_thread.partition_C(make_identity_tensor(tile));
    WarpgroupProduct product{mma, frag_a, frag_b, acc};
    consume(pipeline, work, product, [&](const Unit& unit) {
      const auto origin = make_coord(L::row_a(unit, rank), unit.n0);
      store_tile<Out>(make_tensor(acc.data(), wgmma_pairs(acc.layout())),
                      make_tensor(crd.data() + origin, wgmma_pairs(crd.layout())), args.out);
    });
  }
}

template <class L, class Out>
void sm90_launch(const GemmArgs& args, int multiprocessors, const Stream& stream) {
  const auto kernel = &sm90_kernel<Out, L>;
  constexpr int kBytes = sizeof(typename L::Shared);
  // Before the tensor maps, which need the context that this makes where a thread has none.
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "shared memory of the GEMM");
  const auto maps = [](const int8_t* data, int64_t rows, int64_t depth, int64_t stride, int box) {
    return tensor_map(data, rows, depth, stride, box, L::kDepth);
  };
  Sm90Args<Out> device_args{};
  device_args.a = maps(args.a, args.m, args.k, args.a_stride, L::kBoxA);
  device_args.b = maps(args.b, args.n, args.k, args.b_stride, L::kBoxB);
  if (args.high_count && args.high_stride > 0) {
    const int64_t depth = args.high_stride;
    device_args.a_high = maps(args.a_high, args.m, depth, depth, L::kBoxA);
    device_args.b_high = maps(args.b_high, args.n, depth, depth, L::kBoxB);
    device_args.panel_depth = static_cast<int>(depth);
    device_args.high_count = args.high_count;
  }
  device_args.m = static_cast<int>(args.m);
  device_args.n = static_cast<int>(args.n);
  device_args.depth = static_cast<int>(args.k);
  device_args.live_columns = args.live_columns;
  device_args.out = output_tile<Out>(args);

  const int units = TileGrid::make<L>(device_args.m, device_args.n).units();
  const int clusters = std::min(units, std::max(1, multiprocessors * L::kBlocks / L::kCluster));
  launch(stream, kernel, dim3(static_cast<unsigned>(clusters * L::kCluster)), dim3(L::kThreads),
         kBytes, device_args);
}

/// The GEMM with outputs of one type; instantiated in one file each, since it compiles slowly.
template <class Out>
void sm90_gemm(const GemmArgs& args, int multiprocessors, const Stream& stream);

template <class Out>
void sm90_run(const GemmArgs& args, int multiprocessors, const Stream& stream) {
  if (large_tile_pays(args.m, args.n, multiprocessors))
    sm90_launch<Sm90LargeTile, Out>(args, multiprocessors, stream);
  else
    sm90_launch<Sm90SmallTile, Out>(args, multiprocessors, stream);
}

}  // namespace int8tile::cuda
