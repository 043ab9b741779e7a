// Memory of one call: the mapping of fresh pages, and a bump allocator over one aligned block,
// which stays with the process for the next call.
#pragma once

#include <cstdint>

#include "int8tile/types.hpp"

namespace int8tile {

/// Maps fresh memory that is about to be overwritten, in huge pages where the system grants them.
/// Left to the writes, faults of 4 KiB pages take longer than the GEMM that fills a large output.
/// Does nothing to small blocks. The contents are lost.
void prepare_pages(void* data, int64_t bytes, int threads);

inline constexpr int64_t kAlignment = 64;

/// Memory of an arena; no bytes where it belongs to the caller.
struct Block {
  char* data = nullptr;
  int64_t bytes = 0;
};

/// Hands out 64-byte aligned arrays. Without a block it only measures, so the same layout code
/// first computes the size and then the addresses.
class Arena {
 public:
  Arena() = default;
  explicit Arena(int64_t bytes);
  /// Over memory of the caller, which must be aligned and outlive the arena.
  explicit Arena(void* block) : block_{static_cast<char*>(block), 0} {}

  template <class T>
  T* take(int64_t count) {
    const int64_t offset = used_;
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), kAlignment);
    return block_.data ? reinterpret_cast<T*>(block_.data + offset) : nullptr;
  }

  int64_t used() const { return used_; }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

 private:
  Block block_;
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
