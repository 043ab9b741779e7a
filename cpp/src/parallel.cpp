// OpenMP loop, page preparation and aligned allocation.
#include "int8tile/parallel.hpp"

#include <sys/mman.h>

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

void prepare_pages(void* data, int64_t bytes, int threads) {
#ifdef MADV_HUGEPAGE
  constexpr int64_t kHugePage = 2 << 20;
  const int64_t unaligned =
      static_cast<int64_t>(reinterpret_cast<std::uintptr_t>(data)) % kHugePage;
  const int64_t skipped = (kHugePage - unaligned) % kHugePage;
  const int64_t pages = (bytes - skipped) / kHugePage;
  if (pages < 1) return;
  char* begin = static_cast<char*>(data) + skipped;
  // Only advice: a kernel without huge pages refuses, and the pages are mapped when written.
  if (madvise(begin, static_cast<std::size_t>(pages * kHugePage), MADV_HUGEPAGE) != 0) return;
  // Each page by one thread: of two that met in it, both would clear it and one for nothing.
  parallel_for(threads, pages, [&](int64_t page, int) {
    *static_cast<volatile char*>(begin + page * kHugePage) = 0;
  });
#else
  static_cast<void>(data), static_cast<void>(bytes), static_cast<void>(threads);
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
