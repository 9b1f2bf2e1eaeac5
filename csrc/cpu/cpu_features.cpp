#include "cpu_features.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#endif

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdint>

namespace octavo {

#if defined(__x86_64__) || defined(_M_X64)

namespace {

struct Registers {
    uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
    Registers r;
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
    return r;
}

// The register state the operating system saves: without its bits, an instruction set is present but must not be used.
uint64_t saved_state() {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t(high) << 32) | low;
}

// Whether the operating system lets this process use the tiles of AMX; it has to be asked once, before any thread does.
bool may_use_tiles() {
#if defined(__linux__)
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

constexpr bool bit(uint32_t value, int index) { return (value >> index) & 1; }

}  // namespace

std::vector<std::string> cpu_features() {
    std::vector<std::string> found;
    const Registers one = cpuid(1, 0);
    const bool os_saves = bit(one.ecx, 27);
    const uint64_t state = os_saves ? saved_state() : 0;
    const bool ymm = (state & 0x6) == 0x6;
    const bool zmm = ymm && (state & 0xe0) == 0xe0;
    const bool tiles = (state & 0x60000) == 0x60000 && may_use_tiles();
    const Registers seven = cpuid(7, 0);
    const Registers seven_one = cpuid(7, 1);
    const auto add = [&found](bool present, const char* name) {
        if (present) found.emplace_back(name);
    };
    add(ymm && bit(one.ecx, 28), "avx");
    add(ymm && bit(one.ecx, 29), "f16c");
    add(ymm && bit(one.ecx, 12), "fma");
    add(ymm && bit(seven.ebx, 5), "avx2");
    add(ymm && bit(seven_one.eax, 4), "avx_vnni");
    add(zmm && bit(seven.ebx, 16), "avx512f");
    add(zmm && bit(seven.ebx, 17), "avx512dq");
    add(zmm && bit(seven.ebx, 30), "avx512bw");
    add(zmm && bit(seven.ebx, 31), "avx512vl");
    add(zmm && bit(seven.ecx, 1), "avx512vbmi");
    add(zmm && bit(seven.ecx, 11), "avx512_vnni");
    add(zmm && bit(seven_one.eax, 5), "avx512_bf16");
    add(tiles && bit(seven.edx, 24), "amx_tile");
    add(tiles && bit(seven.edx, 22), "amx_bf16");
    add(tiles && bit(seven.edx, 25), "amx_int8");
    return found;
}

#else

std::vector<std::string> cpu_features() { return {}; }

#endif

}  // namespace octavo
