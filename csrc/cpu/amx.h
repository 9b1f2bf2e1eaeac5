// AMX: eight tiles of 16 rows x 64 bytes, and products of two of them added to a third.
//
//   A: rows of activations          16 x (32 bf16 | 64 int8)
//   B: weights, k in pairs or fours  (16 pairs | 16 fours of k) x 16 columns: the lines of a panel (packed_weight.h) are its rows
//   C: sums                         16 x 16 float or int32
//
// A tile's instruction does all 16 rows whatever is asked of it. So kernels load 16 rows, drop the sums of those past the last, and need
// whatever lies there to be readable, nothing more: a row's sums depend on no other row.
//
// A sum of bf16 products is taken as the hardware has it: of each 32 k first the even and the odd ones, each in order, then both
// together to the sum so far. The same for every row, whatever is computed beside it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd.h"

#if defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AMX_BF16__)
#define OCTAVO_AMX 1

namespace octavo::OCTAVO_ISA {

constexpr int TILE_ROWS = 16;
constexpr int TILE_BYTES = 64;  // of a row

// What ldtilecfg reads.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// A thread's tiles while it lives. They are given back at its end: their 8 KiB would be saved at every switch of threads.
class TilesInUse {
  public:
    explicit TilesInUse(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
    ~TilesInUse() { asm volatile("tilerelease"); }
    TilesInUse(const TilesInUse&) = delete;
    TilesInUse& operator=(const TilesInUse&) = delete;
};

// The compiler does not see that these read and write memory, except by "memory".
template <int TILE>
OCTAVO_INLINE void load_tile(const void* rows, size_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(TILE) : "memory");
}
template <int TILE>
OCTAVO_INLINE void stream_tile(const void* rows, size_t stride) {
    asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(TILE) : "memory");
}
template <int TILE>
OCTAVO_INLINE void store_tile(void* rows, size_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride), "i"(TILE) : "memory");
}
template <int TILE>
OCTAVO_INLINE void clear_tile() {
    asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
}
template <int C, int A, int B>
OCTAVO_INLINE void add_bf16_products() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
// A signed, B unsigned: exact.
template <int C, int A, int B>
OCTAVO_INLINE void add_byte_products() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

}  // namespace octavo::OCTAVO_ISA

#endif
