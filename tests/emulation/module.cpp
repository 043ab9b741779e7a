// The bindings of the CUDA backend over the emulated runtime, as a Python module of their own.
#include <pybind11/pybind11.h>

#include "../../python/bindings/arguments.hpp"

PYBIND11_MODULE(int8tile_emulated, m) { int8tile::bindings::bind_cuda(m); }
