// Threads of one call: parallel loops on the process's OpenMP pool.
#pragma once

#include <cstdint>
#include <functional>

#include "int8tile/types.hpp"

namespace int8tile {

/// Runs body(task, thread) for every task in [0, tasks), with thread < threads, whatever the number
/// of tasks. The body must not throw: no exception can leave a parallel region.
void parallel_for(int threads, int64_t tasks, const std::function<void(int64_t, int)>& body);

/// How many threads get a share of `tasks` in parallel_pass; at least 1.
constexpr int share_count(int threads, int64_t tasks) {
  return tasks < 1 ? 1 : tasks < threads ? static_cast<int>(tasks) : threads;
}

/// The same for passes over the rows of one matrix: thread t takes the t-th share of the tasks, so
/// what it left in its cache on one pass is there on the next, which should go `backwards` where
/// the matrix is larger than the caches. body(task, share) with share < share_count.
void parallel_pass(int threads, int64_t tasks, bool backwards,
                   const std::function<void(int64_t, int)>& body);

}  // namespace int8tile
