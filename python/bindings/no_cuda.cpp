// In the place of cuda.cpp in builds without the CUDA backend.
#include <pybind11/pybind11.h>

#include "arguments.hpp"

void int8tile::bindings::bind_cuda(pybind11::module_& m) { m.attr("cuda_compiled") = false; }
