// The two roles in a block of the sm_90 GEMM, as loops over any pipeline; host code can run them.
#pragma once

#include "sm90_layout.cuh"

namespace int8tile::cuda {

/// What the blocks of a cluster go through in the same order: units, and the K tiles of each.
struct Work {
  TileGrid grid;
  SegmentPlan plan;
  int depth_tiles;        // of the regular segment, at least 1
  int cluster, clusters;  // this cluster, and how many share the units
};

/// Fills stages; load(unit, tile, in_panel, stage) starts the copies of one K tile.
#pragma nv_exec_check_disable
template <class Pipeline, class Load>
CUTE_HOST_DEVICE void produce(Pipeline& pipeline, const Work& work, const Load& load) {
  // An empty stage counts as one just released, which is the other phase.
  typename Pipeline::PipelineState writing{0, 1, 0};
  CUTE_NO_UNROLL
  for (int unit = work.cluster; unit < work.grid.units(); unit += work.clusters) {
    const Unit at = work.grid.at(unit);
    CUTE_NO_UNROLL
    for (int tile = -work.plan.panel_tiles; tile < work.depth_tiles; ++tile, ++writing) {
      pipeline.producer_acquire(writing);
      if (tile < 0)
        load(at, work.plan.panel_tiles + tile, true_type{}, writing);
      else
        load(at, tile, false_type{}, writing);
    }
  }
  // No block may end while another of its cluster still arrives at its barriers.
  pipeline.producer_tail(writing);
}

/// Multiplies what the producers of the cluster load; store(unit) writes the accumulators out.
#pragma nv_exec_check_disable
template <class Pipeline, class Product, class Store>
CUTE_HOST_DEVICE void consume(Pipeline& pipeline, const Work& work, Product& product,
                              const Store& store) {
  typename Pipeline::PipelineState reading, finished;
  CUTE_NO_UNROLL
  for (int unit = work.cluster; unit < work.grid.units(); unit += work.clusters) {
    product.start();
    if (work.plan.panel_tiles > 0) {
      int steps = work.plan.shift_at;
      CUTE_NO_UNROLL
      for (int tile = 0; tile < work.plan.panel_tiles; ++tile, ++reading) {
        pipeline.consumer_wait(reading);
        steps -= product.multiply_panel(reading.index(), steps);
        pipeline.consumer_release(reading);
      }
      product.shift();
    }
    finished = reading;
    CUTE_NO_UNROLL
    for (int tile = 0; tile < work.depth_tiles; ++tile, ++reading) {
      pipeline.consumer_wait(reading);
      product.multiply(reading.index());  // returns when all earlier tiles are multiplied
      if (tile > 0) {
        pipeline.consumer_release(finished);
        ++finished;
      }
    }
    product.finish();
    pipeline.consumer_release(finished);
    store(work.grid.at(unit));
  }
}

}  // namespace int8tile::cuda
