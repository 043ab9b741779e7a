// Runs the loops of the sm_90 GEMM's two roles on the host, over barriers and copies that complete
// in random order: no deadlock, no stage written while it is read, and each sum as it should be.
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "gemm/sm90_roles.cuh"

using namespace int8tile::cuda;

namespace {

struct Failure {
  int line;
  const char* what;
};
std::unique_ptr<Failure> failure;  // the first; everything stops then

#define EXPECT(condition)                                                           \
  do {                                                                              \
    if (!(condition) && !failure) failure.reset(new Failure{__LINE__, #condition}); \
  } while (0)

// An mbarrier: a phase ends when all have arrived and all bytes that were announced have come.
struct Barrier {
  int expected = 0, pending = 0, bytes = 0;
  unsigned phase = 0;

  void arrive() {
    EXPECT(pending > 0);
    --pending;
    settle();
  }
  void add_bytes(int count) {
    bytes += count;
    settle();
  }
  bool passed(unsigned parity) const { return phase != parity; }
  void settle() {
    if (pending > 0 || bytes != 0) return;
    phase ^= 1;
    pending = expected;
  }
};

// Part of a stage that one copy fills.
struct Part {
  int64_t tile = -1;  // which K tile of which unit it holds
  int readers = 0;    // warpgroups that have not multiplied it yet
};

template <class L>
struct Block {
  Barrier full[L::kStages], empty[L::kStages];
  Part a[L::kStages], b[L::kStages][L::kCluster];
  int roles = 0;  // that have not ended
};

template <class L>
struct Machine {
  static constexpr int kGroups = L::kConsumerThreads / L::kGroupThreads;
  Block<L> blocks[L::kCluster];
  std::vector<std::function<void()>> copies;  // under way
  std::mt19937 random;

  explicit Machine(unsigned seed) : random(seed) {
    for (Block<L>& block : blocks) {
      block.roles = 1 + kGroups;
      for (int stage = 0; stage < L::kStages; ++stage) {
        block.full[stage].expected = block.full[stage].pending = 1;
        // Each group tells every block of the cluster that it has read the stage.
        block.empty[stage].expected = block.empty[stage].pending = kGroups * L::kCluster;
      }
    }
  }
};

// Fibers that the scheduler resumes in random order.
struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[64 << 10]};
  std::function<void()> body;
  std::function<bool()> ready;  // what it waits for
  bool done = false;
};
std::vector<std::unique_ptr<Fiber>> fibers;
ucontext_t scheduler;
Fiber* current = nullptr;

void wait_until(std::function<bool()> ready) {
  current->ready = std::move(ready);
  swapcontext(&current->context, &scheduler);
}
void pause() {
  wait_until([] { return true; });
}
void enter() {
  current->body();
  current->done = true;
  swapcontext(&current->context, &scheduler);
}

template <class L>
void run(Machine<L>& machine) {
  for (auto& fiber : fibers) {
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = 64 << 10;
    fiber->ready = [] { return true; };
    makecontext(&fiber->context, enter, 0);
  }
  while (!failure) {
    std::vector<Fiber*> ready;
    bool all_done = true;
    for (auto& fiber : fibers) {
      all_done &= fiber->done;
      if (!fiber->done && fiber->ready()) ready.push_back(fiber.get());
    }
    const size_t choices = ready.size() + machine.copies.size();
    if (choices == 0) {
      EXPECT(all_done && "no deadlock");
      return;
    }
    const size_t choice = machine.random() % choices;
    if (choice < ready.size()) {
      current = ready[choice];
      swapcontext(&scheduler, &current->context);
    } else {
      const size_t copy = choice - ready.size();
      const auto complete = machine.copies[copy];
      machine.copies.erase(machine.copies.begin() + copy);
      complete();
    }
  }
}

// The interface of cutlass::PipelineTmaAsync, as one role of one block sees it.
template <class L>
struct Pipeline {
  Machine<L>& machine;
  int rank;

  struct PipelineState {
    int index_ = 0;
    unsigned phase_ = 0, count_ = 0;
    int index() const { return index_; }
    unsigned phase() const { return phase_; }
    void operator++() {
      if (++index_ < L::kStages) return;
      index_ = 0;
      phase_ ^= 1;
    }
  };

  Block<L>& block() { return machine.blocks[rank]; }
  void producer_acquire(const PipelineState& state) {
    wait_until([=, this] { return block().empty[state.index()].passed(state.phase()); });
    block().full[state.index()].bytes += L::kStageBytes;
    block().full[state.index()].arrive();
    pause();
  }
  void producer_tail(PipelineState state) {
    for (int stage = 0; stage < L::kStages; ++stage, ++state)
      wait_until([=, this] { return block().empty[state.index()].passed(state.phase()); });
  }
  void consumer_wait(const PipelineState& state) {
    wait_until([=, this] { return block().full[state.index()].passed(state.phase()); });
  }
  void consumer_release(const PipelineState& state) {
    for (Block<L>& to : machine.blocks) {
      EXPECT(to.roles > 0);  // its shared memory is still there
      to.empty[state.index()].arrive();
      pause();
    }
  }
};

// A name for what a copy takes from an operand, and a number as the product of two for 32 columns.
int64_t name(int row, int k, bool in_panel) { return (int64_t{row} << 24 | k) << 1 | in_panel; }
uint32_t value(int64_t a, int64_t b, int step) {
  uint64_t x = uint64_t(a) * 0x9e3779b97f4a7c15u + uint64_t(b) * 0xc2b2ae3d27d4eb4fu + step;
  return uint32_t((x ^ x >> 29) * 0xbf58476d1ce4e5b9u >> 32);
}

template <class L>
void copy_box(Machine<L>& machine, int stage, int rows, int64_t tile, unsigned mask, bool is_a,
              int rank) {
  for (int to = 0; to < L::kCluster; ++to) {
    if (!(mask >> to & 1)) continue;
    Block<L>& block = machine.blocks[to];
    Part& part = is_a ? block.a[stage] : block.b[stage][rank];
    EXPECT(part.readers == 0 && block.roles > 0);
    part = {-1, Machine<L>::kGroups};
    machine.copies.push_back([&block, &part, stage, rows, tile] {
      EXPECT(block.roles > 0);
      part.tile = tile;
      block.full[stage].add_bytes(-rows * L::kDepth);
    });
  }
}

// What a consumer group multiplies; wgmma still reads the stage after multiply() has returned.
template <class L>
struct Product {
  Block<L>& block;
  uint32_t acc = 0xdeadbeef;
  int in_flight = -1;
  int64_t seen[L::kStages][1 + L::kCluster] = {};

  void begin(int stage, int steps) {
    seen[stage][0] = block.a[stage].tile;
    for (int i = 0; i < L::kCluster; ++i) seen[stage][1 + i] = block.b[stage][i].tile;
    for (int64_t each : seen[stage]) EXPECT(each >= 0);
    for (int step = 0; step < steps; ++step)
      for (int i = 0; i < L::kCluster; ++i) acc += value(seen[stage][0], seen[stage][1 + i], step);
    pause();
  }
  void end(int stage) {
    EXPECT(block.a[stage].tile == seen[stage][0]);
    for (int i = 0; i < L::kCluster; ++i) EXPECT(block.b[stage][i].tile == seen[stage][1 + i]);
    --block.a[stage].readers;
    for (Part& part : block.b[stage]) --part.readers;
  }
  void start() {
    EXPECT(in_flight < 0);
    acc = 0;
  }
  int multiply_panel(int stage, int steps) {
    steps = steps < L::kSteps ? steps : L::kSteps;
    begin(stage, steps);
    end(stage);
    return steps;
  }
  void shift() {
    EXPECT(in_flight < 0);
    acc <<= 7;
  }
  void multiply(int stage) {
    begin(stage, L::kSteps);
    finish();
    in_flight = stage;
    pause();
  }
  void finish() {
    if (in_flight >= 0) end(in_flight);
    in_flight = -1;
  }
};

template <class L>
uint32_t expected_sum(const Unit& at, const Work& work, int rank) {
  uint32_t sum = 0;
  const auto add = [&](int step, bool in_panel) {
    const int k = step * kMmaDepth / L::kDepth * L::kDepth;
    for (int n = 0; n < L::kTileN; n += L::kBoxB)
      sum += value(name(at.m0 + rank * L::kTileM, k, in_panel), name(at.n0 + n, k, in_panel),
                   step % L::kSteps);
  };
  for (int step = 0; step < work.plan.shift_at; ++step) add(step, true);
  sum <<= 7;
  for (int step = 0; step < work.depth_tiles * L::kSteps; ++step) add(step, false);
  return sum;
}

template <class L>
bool check(int m, int n, int depth, int high_count, int clusters, unsigned seed) {
  failure.reset();
  std::vector<int> stored(TileGrid::make<L>(m, n).units(), 0);
  for (int cluster = 0; cluster < clusters; ++cluster) {
    const Work work{TileGrid::make<L>(m, n), SegmentPlan::make(high_count, 4096, L::kDepth),
                    (depth + L::kDepth - 1) / L::kDepth, cluster, clusters};
    Machine<L> machine(seed);
    fibers.clear();
    for (int rank = 0; rank < L::kCluster; ++rank) {
      Block<L>& block = machine.blocks[rank];
      const auto role = [&](auto body) {
        fibers.emplace_back(new Fiber);
        fibers.back()->body = [&block, body] {
          body();
          --block.roles;
        };
      };
      role([&, rank] {
        Pipeline<L> pipeline{machine, rank};
        produce(pipeline, work, [&](const Unit& at, int tile, auto in_panel, const auto& writing) {
          const int stage = writing.index(), k = tile * L::kDepth;
          copy_box(machine, stage, L::kBoxA, name(L::row_a(at, rank), k, in_panel), 1u << rank,
                   true, rank);
          pause();
          copy_box(machine, stage, L::kBoxB, name(L::row_b(at, rank), k, in_panel),
                   (1u << L::kCluster) - 1, false, rank);
        });
      });
      for (int group = 0; group < Machine<L>::kGroups; ++group)
        role([&, rank] {
          Pipeline<L> pipeline{machine, rank};
          Product<L> product{block};
          int unit = cluster;
          consume(pipeline, work, product, [&](const Unit& at) {
            const Unit expected = work.grid.at(unit);
            EXPECT(at.m0 == expected.m0 && at.n0 == expected.n0);
            EXPECT(product.acc == expected_sum<L>(at, work, rank));
            ++stored[unit];
            unit += clusters;
            pause();
          });
        });
    }
    run(machine);
    EXPECT(machine.copies.empty());
  }
  for (int times : stored) EXPECT(times == Machine<L>::kGroups * L::kCluster);
  if (failure)
    std::printf("FAILED line %d: %s (m %d n %d depth %d high %d clusters %d seed %u)\n",
                failure->line, failure->what, m, n, depth, high_count, clusters, seed);
  return !failure;
}

template <class L>
bool check_all() {
  for (unsigned seed = 0; seed < 20; ++seed)
    for (int units : {0, 1, 2, 3})
      for (int tiles : {1, 2, 3, 4, 5, 9})
        for (int high_count : {0, 1, 32, 33, 128, 129, 700})
          for (int clusters : {1, 2})
            if (!check<L>((1 + units % 2) * L::kTileM * L::kCluster, units * L::kTileN,
                          tiles * L::kDepth - 16, high_count, clusters, seed))
              return false;
  return true;
}

}  // namespace

int main() {
  const bool right = check_all<Sm90LargeTile>() && check_all<Sm90SmallTile>();
  std::puts(right ? "ok" : "FAILED");
  return right ? 0 : 1;
}
