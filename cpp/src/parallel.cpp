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

namespace {

constexpr int64_t kHugePage = 2 << 20;

struct HugePages {
  char* begin = nullptr;
  int64_t count = 0;
};

// Asks for huge pages where a block holds whole ones. Only advice: where the system has none, small
// pages are mapped as they are written. It stays with the addresses, so whoever gets the memory
// next may get huge pages too.
HugePages advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_HUGEPAGE
  const auto address = static_cast<int64_t>(reinterpret_cast<std::uintptr_t>(data));
  const int64_t skipped = round_up(address, kHugePage) - address;
  const HugePages pages{static_cast<char*>(data) + skipped, (bytes - skipped) / kHugePage};
  if (pages.count > 0 &&
      madvise(pages.begin, static_cast<std::size_t>(pages.count * kHugePage), MADV_HUGEPAGE) == 0)
    return pages;
#endif
  return {};
}

}  // namespace

void prepare_pages(void* data, int64_t bytes, int threads) {
  const HugePages pages = advise_huge_pages(data, bytes);
  // Each page by one thread: of two that met in it, both would clear it and one for nothing.
  parallel_for(threads, pages.count, [&](int64_t page, int) {
    *static_cast<volatile char*>(pages.begin + page * kHugePage) = 0;
  });
}

Arena::Arena(int64_t bytes) {
  const auto size = static_cast<std::size_t>(round_up(std::max<int64_t>(bytes, 1), kAlignment));
  block_ = static_cast<char*>(std::aligned_alloc(kAlignment, size));
  if (!block_) throw std::bad_alloc();
  advise_huge_pages(block_, bytes);
}

Arena::~Arena() {
  if (owned_) std::free(block_);
}

}  // namespace int8tile
