// Which instruction sets this processor and operating system offer, asked once by CPUID.
#pragma once

#include <string>
#include <vector>

namespace octavo {

// Names in the spelling of /proc/cpuinfo ("avx2", "avx512_bf16", "amx_int8", ...), in a fixed order; empty off x86.
std::vector<std::string> cpu_features();

}  // namespace octavo
