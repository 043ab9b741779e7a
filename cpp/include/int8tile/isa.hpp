// Which instruction sets this build and this CPU have, and the kernel that serves each.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace int8tile {

struct Kernel;

/// Names, best first, of the kernels compiled into this build.
std::vector<std::string> compiled_isas();

/// Names, best first, of the compiled kernels that this CPU can run.
std::vector<std::string> supported_isas();

/// The kernel called `name`; an empty name takes INT8TILE_ISA, or else the best supported.
/// Throws std::invalid_argument for an unknown name and UnsupportedError where the CPU lacks it.
const Kernel& select_kernel(const std::string& name = {});

/// The register tile of a kernel: rows of an A panel, columns of a B panel.
struct TileShape {
  int rows = 0;
  int columns = 0;
};
TileShape tile_shape(const Kernel& kernel);
std::string kernel_name(const Kernel& kernel);

/// Whether the kernel multiplies int8 with a dot-product instruction, which float32 does not match.
bool has_dot_product(const Kernel& kernel);

/// What the planner needs to know of a CPU.
struct CpuFacts {
  const Kernel* kernel = nullptr;
  int threads = 1;
  int64_t l1_bytes = 32 << 10;  // per core
  int64_t l2_bytes = 1 << 20;   // per core
};

/// Facts of this machine, with the kernel `isa` (empty: the default) and `threads` threads.
CpuFacts cpu_facts(int threads, const std::string& isa = {});

}  // namespace int8tile
