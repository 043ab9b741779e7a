// Segmented-K int8 GEMM for compute capability 8.0 and later: cp.async, ldmatrix, mma.m16n8k32.
#pragma once

#include "../launch.cuh"
#include "gemm.cuh"
#include "segments.cuh"
#include "sm80_layout.cuh"
#include "store.cuh"

namespace int8tile::cuda {

/// Where one operand of the tile comes from: the panel for the first K tiles, then the matrix.
struct Operand {
  const int8_t* regular;
  const int8_t* panel;
  int rows;
  int64_t stride;
};

template <class Out>
struct Sm80Args {
  int depth;        // of the regular segment, a multiple of 16
  int panel_depth;  // bytes in a row of a panel
  Operand a, b;
  const int32_t* high_count;    // device; null: no panels
  const int32_t* live_columns;  // device; null: all
  OutputTile<Out> out;
};

/// One K tile of one operand to shared memory, 16 bytes a thread at a time; zeros out of range.
template <class Copy, class Source, class Target, class Coordinates>
CUTE_DEVICE void load_operand(const Source& from, Target&& to, const Coordinates& crd, int row0,
                              int rows, int k0, int depth) {
  CUTE_UNROLL
  for (int i = 0; i < size<1>(to); ++i) {
    const bool inside = row0 + get<0>(crd(0, i, 0)) < rows && k0 + get<1>(crd(0, i, 0)) < depth;
    copy(Copy{}.with(inside), from(_, i, 0), to(_, i, 0));
  }
}

template <class Out, int TileM, int TileN>
__global__ __launch_bounds__(Sm80Layout<TileM, TileN>::kThreads,
                             1) void sm80_kernel(Sm80Args<Out> args) {
  using L = Sm80Layout<TileM, TileN>;
  extern __shared__ __align__(128) int8_t shared[];
  // Neighbors along n first. In one dimension, since the others end at 65,535 blocks.
  const int across = (args.b.rows + TileN - 1) / TileN;
  const int tile_m = static_cast<int>(blockIdx.x) / across;
  const int tile_n = static_cast<int>(blockIdx.x) % across;
  const int m0 = tile_m * TileM, n0 = tile_n * TileN;
  if (args.live_columns && n0 >= *args.live_columns) return;
  const SegmentPlan plan = args.high_count
                               ? SegmentPlan::make(*args.high_count, args.panel_depth, L::kDepth)
                               : SegmentPlan{};

  const auto matrix = [](const int8_t* data, int rows, int depth, int64_t stride) {
    return make_tensor(make_gmem_ptr(data), make_shape(rows, depth), make_stride(stride, _1{}));
  };
  const auto tile_a = make_shape(Int<TileM>{}, Int<L::kDepth>{});
  const auto tile_b = make_shape(Int<TileN>{}, Int<L::kDepth>{});
  const auto at_a = make_coord(tile_m, _);
  const auto at_b = make_coord(tile_n, _);
  const int panel = args.panel_depth;
  Tensor gmem_a =
      local_tile(matrix(args.a.regular, args.a.rows, args.depth, args.a.stride), tile_a, at_a);
  Tensor gmem_b =
      local_tile(matrix(args.b.regular, args.b.rows, args.depth, args.b.stride), tile_b, at_b);
  Tensor gmem_pa = local_tile(matrix(args.a.panel, args.a.rows, panel, panel), tile_a, at_a);
  Tensor gmem_pb = local_tile(matrix(args.b.panel, args.b.rows, panel, panel), tile_b, at_b);
  Tensor smem_a = make_tensor(make_smem_ptr(shared), typename L::SharedA{});
  Tensor smem_b =
      make_tensor(make_smem_ptr(shared + cosize_v<typename L::SharedA>), typename L::SharedB{});

  const auto copier = typename L::ToShared{}.get_slice(threadIdx.x);
  Tensor from_a = copier.partition_S(gmem_a);
  Tensor from_b = copier.partition_S(gmem_b);
  Tensor from_pa = copier.partition_S(gmem_pa);
  Tensor from_pb = copier.partition_S(gmem_pb);
  Tensor to_a = copier.partition_D(smem_a);
  Tensor to_b = copier.partition_D(smem_b);
  Tensor crd_a = copier.partition_S(make_identity_tensor(tile_a));
  Tensor crd_b = copier.partition_S(make_identity_tensor(tile_b));

  const int tiles = plan.panel_tiles + (args.depth + L::kDepth - 1) / L::kDepth;
  const auto load = [&](int tile, int stage) {
    if (tile >= tiles) return;
    using Copy = typename L::CopyAtom;
    if (tile < plan.panel_tiles) {
      const int k = tile * L::kDepth;
      load_operand<Copy>(from_pa(_, _, _, tile), to_a(_, _, _, stage), crd_a, m0, args.a.rows, k,
                         panel);
      load_operand<Copy>(from_pb(_, _, _, tile), to_b(_, _, _, stage), crd_b, n0, args.b.rows, k,
                         panel);
    } else {
      const int t = tile - plan.panel_tiles, k = t * L::kDepth;
      load_operand<Copy>(from_a(_, _, _, t), to_a(_, _, _, stage), crd_a, m0, args.a.rows, k,
                         args.depth);
      load_operand<Copy>(from_b(_, _, _, t), to_b(_, _, _, stage), crd_b, n0, args.b.rows, k,
                         args.depth);
    }
  };

  typename L::Mma mma;
  const auto thread_mma = mma.get_slice(threadIdx.x);
  Tensor frag_a = thread_mma.partition_fragment_A(smem_a(_, _, 0));
  Tensor frag_b = thread_mma.partition_fragment_B(smem_b(_, _, 0));
  Tensor acc = partition_fragment_C(mma, make_shape(Int<TileM>{}, Int<TileN>{}));
  const auto reader_a = make_tiled_copy_A(typename L::ToRegisters{}, mma).get_slice(threadIdx.x);
  const auto reader_b = make_tiled_copy_B(typename L::ToRegisters{}, mma).get_slice(threadIdx.x);
  Tensor read_a = reader_a.partition_S(smem_a);
  Tensor read_b = reader_b.partition_S(smem_b);
  Tensor into_a = reader_a.retile_D(frag_a);
  Tensor into_b = reader_b.retile_D(frag_b);
  constexpr int kSteps = size<2>(frag_a);  // of 32 in a K tile
  static_assert(kSteps * kMmaDepth == L::kDepth);
  clear(acc);

  CUTE_UNROLL
  for (int stage = 0; stage < L::kStages - 1; ++stage) {
    load(stage, stage);
    cp_async_fence();
  }
  cp_async_wait<L::kStages - 2>();
  __syncthreads();
  copy(typename L::ToRegisters{}, read_a(_, _, 0, 0), into_a(_, _, 0));
  copy(typename L::ToRegisters{}, read_b(_, _, 0, 0), into_b(_, _, 0));

  int reading = 0, writing = L::kStages - 1;
  // Multiplies one K tile, reads the next fragments and starts one copy from global memory.
  const auto multiply = [&](int tile, auto in_panel) {
    CUTE_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      if (step == kSteps - 1) {  // the next stage has landed, and every thread is done with this
        cp_async_wait<L::kStages - 2>();
        __syncthreads();
        reading = reading + 1 == L::kStages ? 0 : reading + 1;
      }
      const int next = (step + 1) % kSteps;
      copy(typename L::ToRegisters{}, read_a(_, _, next, reading), into_a(_, _, next));
      copy(typename L::ToRegisters{}, read_b(_, _, next, reading), into_b(_, _, next));
      if (step == 0) {
        load(tile + L::kStages - 1, writing);
        cp_async_fence();
        writing = writing + 1 == L::kStages ? 0 : writing + 1;
      }
      cute::gemm(mma, frag_a(_, _, step), frag_b(_, _, step), acc);
      if constexpr (decltype(in_panel)::value) {
        if (tile * kSteps + step + 1 == plan.shift_at) shift_limb(acc);
      }
    }
  };
  int tile = 0;
  CUTE_NO_UNROLL
  for (; tile < plan.panel_tiles; ++tile) multiply(tile, true_type{});
  CUTE_NO_UNROLL
  for (; tile < tiles; ++tile) multiply(tile, false_type{});
  cp_async_wait<0>();

  Tensor crd = thread_mma.partition_C(make_identity_tensor(make_shape(Int<TileM>{}, Int<TileN>{})));
  store_tile<Out>(make_tensor(acc.data(), by_pairs(acc.layout())),
                  make_tensor(crd.data() + make_coord(m0, n0), by_pairs(crd.layout())), args.out);
}

template <class Out, int TileM, int TileN>
void sm80_launch(const Sm80Args<Out>& args, const Stream& stream) {
  using L = Sm80Layout<TileM, TileN>;
  const auto kernel = &sm80_kernel<Out, TileM, TileN>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, L::kSharedBytes),
        "shared memory of the GEMM");
  const dim3 grid(
      static_cast<unsigned>(ceil_div(args.b.rows, TileN) * ceil_div(args.a.rows, TileM)));
  launch(stream, kernel, grid, dim3(L::kThreads), L::kSharedBytes, args);
}

/// The GEMM with outputs of one type; instantiated in one file each, since it compiles slowly.
template <class Out>
void sm80_gemm(const GemmArgs& args, const GemmTile& tile, const Stream& stream);

template <class Out>
Sm80Args<Out> sm80_args(const GemmArgs& args) {
  return {static_cast<int>(args.k),
          static_cast<int>(args.high_stride),
          {args.a, args.a_high, static_cast<int>(args.m), args.a_stride},
          {args.b, args.b_high, static_cast<int>(args.n), args.b_stride},
          args.high_count,
          args.live_columns,
          output_tile<Out>(args)};
}

template <class Out>
void sm80_run(const GemmArgs& args, const GemmTile& tile, const Stream& stream) {
  const Sm80Args<Out> device_args = sm80_args<Out>(args);
  if (tile.m == kLargeTile.m)
    sm80_launch<Out, kLargeTile.m, kLargeTile.n>(device_args, stream);
  else
    sm80_launch<Out, kSmallTile.m, kSmallTile.n>(device_args, stream);
}

}  // namespace int8tile::cuda
