// The table of one instruction set's kernels.
#include "kernels.h"

#include "amx.h"

#define OCTAVO_NAME_OF(isa) OCTAVO_STRING(isa)
#define OCTAVO_STRING(isa) #isa

namespace octavo::OCTAVO_ISA {

#if defined(OCTAVO_AMX)
constexpr bool HAS_AMX = true;
#else
constexpr bool HAS_AMX = false;
#endif

extern const Kernels kernels;
const Kernels kernels = {OCTAVO_NAME_OF(OCTAVO_ISA), HAS_AMX, embedding, stage_input, linear, norm, add, gated, rotary_cache,
                         attention, all_reduce};

}  // namespace octavo::OCTAVO_ISA
