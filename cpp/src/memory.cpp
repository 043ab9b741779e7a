// Huge pages, and the blocks that workspaces lie in.
#include "int8tile/memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <new>
#include <vector>

#include "int8tile/parallel.hpp"

namespace int8tile {

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

namespace {

// Blocks that workspaces gave back, the one state that outlives a call. Returned to the C library
// they would lie at the top of its heap, which it hands to the system and maps again page by page
// in the next call: a third of a small layer's backward pass on two threads.
class BlockCache {
 public:
  // The smallest block that is large enough, but no far larger one, which a nested workspace may
  // be about to need; empty where there is none.
  Block take(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto best = std::ranges::min_element(blocks_, {}, [&](const Block& block) {
      return block.bytes < bytes ? std::numeric_limits<int64_t>::max() : block.bytes;
    });
    if (best == blocks_.end() || best->bytes < bytes ||
        best->bytes > std::max(2 * bytes, kHugePage))
      return {};
    const Block block = *best;
    blocks_.erase(best);
    kept_ -= block.bytes;
    return block;
  }

  // Frees smaller blocks to make room, and the block itself where it is too large to keep.
  void give(Block block) noexcept {
    if (block.bytes > kMostKept) return std::free(block.data);
    const std::lock_guard lock(mutex_);
    while (kept_ + block.bytes > kMostKept) {
      const auto smallest = std::ranges::min_element(blocks_, {}, &Block::bytes);
      if (smallest == blocks_.end() || smallest->bytes >= block.bytes) return std::free(block.data);
      std::free(smallest->data);
      kept_ -= smallest->bytes;
      blocks_.erase(smallest);
    }
    try {
      blocks_.push_back(block);
    } catch (const std::bad_alloc&) {
      return std::free(block.data);
    }
    kept_ += block.bytes;
  }

  void clear() {
    const std::lock_guard lock(mutex_);
    for (const Block& block : blocks_) std::free(block.data);
    blocks_.clear();
    kept_ = 0;
  }

 private:
  static constexpr int64_t kMostKept = 64 << 20;  // bytes of the process
  std::mutex mutex_;
  std::vector<Block> blocks_;
  int64_t kept_ = 0;
};

BlockCache& block_cache() {
  static auto* const cache = new BlockCache;  // outlives threads that still run at exit
  return *cache;
}

}  // namespace

Arena::Arena(int64_t bytes) : block_(block_cache().take(bytes)) {
  if (block_.data) return;
  block_.bytes = round_up(std::max<int64_t>(bytes, 1), kAlignment);
  const auto allocate = [&] {
    return static_cast<char*>(
        std::aligned_alloc(kAlignment, static_cast<std::size_t>(block_.bytes)));
  };
  block_.data = allocate();
  if (!block_.data) {
    block_cache().clear();
    block_.data = allocate();
  }
  if (!block_.data) throw std::bad_alloc();
  advise_huge_pages(block_.data, block_.bytes);
}

Arena::~Arena() {
  if (block_.bytes > 0) block_cache().give(block_);
}

}  // namespace int8tile
