// Threads and memory of one call: parallel loops on the process's OpenMP pool, the mapping of fresh
// pages, and a bump allocator over one aligned block.
#pragma once

#include <cstdint>
#include <functional>

#include "int8tile/types.hpp"

namespace int8tile {

/// Runs body(task, thread) for every task in [0, tasks) on at most `threads` threads. The body must
/// not throw: no exception can leave a parallel region.
void parallel_for(int threads, int64_t tasks, const std::function<void(int64_t, int)>& body);

/// How many threads get a share of `tasks`; at least 1.
constexpr int share_count(int threads, int64_t tasks) {
  return tasks < 1 ? 1 : tasks < threads ? static_cast<int>(tasks) : threads;
}

/// The same for passes over the rows of one matrix: thread t takes the t-th share of the tasks, so
/// what it left in its cache on one pass is there on the next, which should go `backwards` where
/// the matrix is larger than the caches. body(task, share) with share < share_count.
void parallel_pass(int threads, int64_t tasks, bool backwards,
                   const std::function<void(int64_t, int)>& body);

/// Maps fresh memory that is about to be overwritten, in huge pages where the system grants them.
/// Left to the writes, faults of 4 KiB pages take longer than the GEMM that fills a large output.
/// Does nothing to small blocks. The contents are lost.
void prepare_pages(void* data, int64_t bytes, int threads);

inline constexpr int64_t kAlignment = 64;

/// Hands out 64-byte aligned arrays. Without a block it only measures, so the same layout code
/// first computes the size and then the addresses.
class Arena {
 public:
  Arena() = default;
  explicit Arena(int64_t bytes);
  /// Over memory of the caller, which must be aligned and outlive the arena.
  explicit Arena(void* block) : block_(static_cast<char*>(block)), owned_(false) {}

  template <class T>
  T* take(int64_t count) {
    const int64_t offset = used_;
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), kAlignment);
    return block_ ? reinterpret_cast<T*>(block_ + offset) : nullptr;
  }

  int64_t used() const { return used_; }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

 private:
  char* block_ = nullptr;
  bool owned_ = true;
  int64_t used_ = 0;
};

/// Lays out a struct that takes its arrays from an Arena in its constructor.
template <class Layout>
struct Workspace {
  template <class... Args>
  explicit Workspace(const Args&... args) : arena(bytes(args...)), at(arena, args...) {}

  template <class... Args>
  static int64_t bytes(const Args&... args) {
    Arena measure;
    Layout layout(measure, args...);
    return measure.used();
  }

  Arena arena;
  Layout at;
};

}  // namespace int8tile
