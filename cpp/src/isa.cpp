// Instruction-set detection and kernel choice.
#include "int8tile/isa.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "int8tile/check.hpp"
#include "kernels/kernel.hpp"

namespace int8tile {
namespace {

struct Entry {
  const Kernel* kernel;
  bool supported;
  bool dot_product;
};

// The one place that knows which kernels a build carries; best first.
const std::vector<Entry>& entries() {
  static const std::vector<Entry> table = {
#if defined(INT8TILE_X86)
      {&kAvx512VnniKernel,
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni"),
       true},
      {&kAvx2Kernel, __builtin_cpu_supports("avx2") != 0, false},
#endif
      {&kPortableKernel, true, false},
  };
  return table;
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

// Not every C library names the caches; 0 and -1 mean that it does not know.
void read_caches(CpuFacts& facts) {
#if defined(_SC_LEVEL1_DCACHE_SIZE) && defined(_SC_LEVEL2_CACHE_SIZE)
  if (const long bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE); bytes > 0) facts.l1_bytes = bytes;
  if (const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE); bytes > 0) facts.l2_bytes = bytes;
#else
  static_cast<void>(facts);
#endif
}

}  // namespace

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const auto& entry : entries()) names.emplace_back(entry.kernel->name);
  return names;
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const auto& entry : entries())
    if (entry.supported) names.emplace_back(entry.kernel->name);
  return names;
}

const Kernel& select_kernel(const std::string& name) {
  std::string wanted = name;
  if (wanted.empty())
    if (const char* forced = std::getenv("INT8TILE_ISA")) wanted = forced;
  for (const auto& entry : entries()) {
    if (wanted.empty() && entry.supported) return *entry.kernel;
    if (wanted != entry.kernel->name) continue;
    if (!entry.supported)
      throw UnsupportedError(concat("int8tile: the instruction set '", wanted,
                                    "' was asked for but this CPU lacks it; it can run ",
                                    join(supported_isas())));
    return *entry.kernel;
  }
  throw std::invalid_argument(concat("int8tile: instruction set must be one of ",
                                     join(compiled_isas()), "; got '", wanted, "'"));
}

TileShape tile_shape(const Kernel& kernel) { return {kTileRows, kernel.nr}; }

std::string kernel_name(const Kernel& kernel) { return kernel.name; }

bool has_dot_product(const Kernel& kernel) {
  const auto& all = entries();
  return std::any_of(all.begin(), all.end(),
                     [&](const Entry& e) { return e.kernel == &kernel && e.dot_product; });
}

CpuFacts cpu_facts(int threads, const std::string& isa) {
  require(threads >= 1, "int8tile: threads must be at least 1; got ", threads);
  CpuFacts facts;
  facts.kernel = &select_kernel(isa);
  facts.threads = threads;
  read_caches(facts);
  return facts;
}

}  // namespace int8tile
