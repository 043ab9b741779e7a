// int8tile_bench: all cases that this build has, on Google Benchmark, with its usual filters and
// JSON output (--benchmark_filter=..., --benchmark_format=json).
#include "cases.hpp"

int main(int argc, char** argv) {
  for (void (*add)() : int8tile::bench::CaseFile::all()) add();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
