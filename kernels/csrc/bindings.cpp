#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "cpu.hpp"
#include "memory.hpp"

NB_MODULE(_native, m) {
    m.def("cpu_features", &kernels::cpu_features);
    m.def("retain_freed_memory", &kernels::retain_freed_memory);
}
