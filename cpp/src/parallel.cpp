// The OpenMP loops.
#include "int8tile/parallel.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace int8tile {

void parallel_for(int threads, int64_t tasks, const std::function<void(int64_t, int)>& body) {
  if (threads <= 1 || tasks <= 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task, 0);
    return;
  }
#ifdef _OPENMP
  // All threads even for fewer tasks: a smaller team would make the runtime end the others.
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t task = 0; task < tasks; ++task) body(task, omp_get_thread_num());
#else
  for (int64_t task = 0; task < tasks; ++task) body(task, 0);
#endif
}

void parallel_pass(int threads, int64_t tasks, bool backwards,
                   const std::function<void(int64_t, int)>& body) {
  const int shares = share_count(threads, tasks);
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (shares > 1)
#endif
  for (int t = 0; t < shares; ++t) {
    const int64_t begin = t * tasks / shares, end = (t + 1) * tasks / shares;
    for (int64_t i = begin; i < end; ++i) body(backwards ? begin + end - 1 - i : i, t);
  }
}

}  // namespace int8tile
