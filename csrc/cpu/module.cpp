// The Python binding of the C++ side: octavo.ops._cpu.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "cpu_features.h"

NB_MODULE(_cpu, m) {
    m.doc() = "Octavo's C++ side for CPUs.";
    m.def("cpu_features", &octavo::cpu_features, "Instruction sets of this processor that may be used, in the spelling of /proc/cpuinfo.");
}
