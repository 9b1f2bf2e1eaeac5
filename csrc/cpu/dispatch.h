// Which instruction set's kernels run here.
#pragma once

#include <string>
#include <vector>

#include "ops.h"

namespace octavo {

// Those that are compiled in and that this processor can run, best first; the last is "scalar", which runs anywhere.
std::vector<std::string> kernel_sets();

// The named ones, or the best for an empty name. Throws std::invalid_argument where there are none of that name here.
const Kernels& kernels_named(const std::string& name);

}  // namespace octavo
