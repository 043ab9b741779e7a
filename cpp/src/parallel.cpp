// OpenMP loop and aligned allocation.
#include "int8tile/parallel.hpp"

#include <algorithm>
#include <cstdlib>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace int8tile {

void parallel_for(int threads, int64_t tasks, const std::function<void(int64_t, int)>& body) {
  threads = static_cast<int>(std::min<int64_t>(threads, tasks));
  if (threads <= 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task, 0);
    return;
  }
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t task = 0; task < tasks; ++task) body(task, omp_get_thread_num());
#else
  for (int64_t task = 0; task < tasks; ++task) body(task, 0);
#endif
}

Arena::Arena(int64_t bytes) {
  const auto size = static_cast<std::size_t>(round_up(std::max<int64_t>(bytes, 1), kAlignment));
  block_ = static_cast<char*>(std::aligned_alloc(kAlignment, size));
  if (!block_) throw std::bad_alloc();
}

Arena::~Arena() {
  if (owned_) std::free(block_);
}

}  // namespace int8tile
