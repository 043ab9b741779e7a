// Threads and memory of one call: a dynamic parallel loop on the process's OpenMP pool, and a bump
// allocator over one aligned block.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "int8tile/types.hpp"

namespace int8tile {

/// Runs body(task, thread) for every task in [0, tasks) on at most `threads` threads.
void parallel_for(int threads, int64_t tasks, const std::function<void(int64_t, int)>& body);

inline constexpr int64_t kAlignment = 64;

/// Hands out 64-byte aligned arrays. Without a block it only measures, so the same layout code
/// first computes the size and then the addresses.
class Arena {
 public:
  Arena() = default;
  explicit Arena(int64_t bytes);

  template <class T>
  T* take(int64_t count) {
    const int64_t offset = used_;
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), kAlignment);
    return block_ ? reinterpret_cast<T*>(block_.get() + offset) : nullptr;
  }

  int64_t used() const { return used_; }
  bool measuring() const { return block_ == nullptr; }

 private:
  struct Free {
    void operator()(char* block) const;
  };
  std::unique_ptr<char, Free> block_;
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
