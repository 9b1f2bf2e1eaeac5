#include "dispatch.h"

#include <algorithm>
#include <stdexcept>

#include "cpu_features.h"

namespace octavo {

// CMakeLists.txt compiles the kernels once for each of these and defines OCTAVO_WITH_... for those that the compiler knows.
#define OCTAVO_DECLARE(isa) \
    namespace isa {         \
    extern const Kernels kernels; \
    }
#ifdef OCTAVO_WITH_AMX
OCTAVO_DECLARE(amx)
#endif
#ifdef OCTAVO_WITH_AVX512_BF16
OCTAVO_DECLARE(avx512_bf16)
#endif
#ifdef OCTAVO_WITH_AVX512
OCTAVO_DECLARE(avx512)
#endif
#ifdef OCTAVO_WITH_AVX2
OCTAVO_DECLARE(avx2)
#endif
OCTAVO_DECLARE(scalar)

namespace {

struct Candidate {
    const Kernels* kernels;
    std::vector<const char*> needs;
};

const std::vector<Candidate>& candidates() {
    static const std::vector<Candidate> all = {
#ifdef OCTAVO_WITH_AMX
        {&amx::kernels, {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"}},
#endif
#ifdef OCTAVO_WITH_AVX512_BF16
        {&avx512_bf16::kernels, {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16"}},
#endif
#ifdef OCTAVO_WITH_AVX512
        {&avx512::kernels, {"avx512f", "avx512bw", "avx512vl", "avx512dq"}},
#endif
#ifdef OCTAVO_WITH_AVX2
        {&avx2::kernels, {"avx2", "fma", "f16c"}},
#endif
        {&scalar::kernels, {}},
    };
    return all;
}

bool runs_here(const Candidate& candidate) {
    static const std::vector<std::string> features = cpu_features();
    return std::all_of(candidate.needs.begin(), candidate.needs.end(),
                       [](const char* need) { return std::find(features.begin(), features.end(), need) != features.end(); });
}

}  // namespace

std::vector<std::string> kernel_sets() {
    std::vector<std::string> names;
    for (const Candidate& candidate : candidates()) {
        if (runs_here(candidate)) names.emplace_back(candidate.kernels->name);
    }
    return names;
}

const Kernels& kernels_named(const std::string& name) {
    for (const Candidate& candidate : candidates()) {
        if (runs_here(candidate) && (name.empty() || name == candidate.kernels->name)) return *candidate.kernels;
    }
    throw std::invalid_argument("this processor and build have no kernels named '" + name + "'");
}

}  // namespace octavo
