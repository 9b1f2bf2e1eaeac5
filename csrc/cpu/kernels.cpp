// The table of one instruction set's kernels.
#include "kernels.h"

#define OCTAVO_NAME_OF(isa) OCTAVO_STRING(isa)
#define OCTAVO_STRING(isa) #isa

namespace octavo::OCTAVO_ISA {

extern const Kernels kernels;
const Kernels kernels = {OCTAVO_NAME_OF(OCTAVO_ISA), embedding, linear, norm, add, gated, rotary_cache, attention};

}  // namespace octavo::OCTAVO_ISA
