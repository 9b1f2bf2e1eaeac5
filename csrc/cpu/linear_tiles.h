// The inner loops of the products (linear.cpp): some rows of the operand times one panel of a weight, in every packed format.
//
//       k: in order                one panel of 32 columns, two vectors
//     +-----------------+        +----------+
//   R |  operand rows   |   x  k |          |  =  R x 32 sums in registers, one for each row and column
//     +-----------------+        +----------+
//
// A row's sums run over k in one order, whatever R is. Quantised weights keep theirs as whole numbers within a block of 32 k (exact),
// which are then multiplied by both scales and added as float32.
#pragma once

#include "operand.h"
#include "simd.h"

namespace octavo::OCTAVO_ISA {
namespace {

// Rows of a tile: two accumulators each, and for bytes two sums too, in what registers there are.
constexpr int DENSE_TILE = REGISTERS >= 32 ? 12 : REGISTERS >= 8 ? 3 : 1;
constexpr int BYTE_TILE = REGISTERS >= 32 ? 6 : REGISTERS >= 8 ? 2 : 1;

// Fetches what comes next from memory, a few lines at a time.
struct Prefetcher {
    const uint8_t* at;
    const uint8_t* end;
    int lines;  // in each step
    bool near;  // to the level-1 cache, not only to level 2

    __attribute__((always_inline)) void step() {
        if (near) {
            for (int i = 0; i < lines && at < end; i++, at += 64) __builtin_prefetch(at, 0, 3);
        } else {
            for (int i = 0; i < lines && at < end; i++, at += 64) __builtin_prefetch(at, 0, 2);
        }
    }
};

constexpr int PREFETCH_EVERY = 8;  // vectors' worth of k of a dense weight between two steps

// Some rows of the operand and one panel. Kernels copy what they use of it: they cannot know that nothing changes it.
struct Tile {
    const uint8_t* rows;  // the first one, where they are dense; their group otherwise
    int first;            // which of the group
    int height;           // how many
    size_t row_bytes;     // of dense ones
    const uint8_t* panel;
    const uint8_t* unpacked;  // its four-bit values as bytes or bf16, for the kernels of AMX; null: the kernel does it
    int k;
    int zero;
};

template <int R>
OCTAVO_INLINE void store_sums(F32 (*acc)[2], float (*out)[PANEL]) {
    OCTAVO_UNROLL for (int r = 0; r < R; r++) {
        store(out[r], acc[r][0]);
        store(out[r] + LANES, acc[r][1]);
    }
}

// ---- dense: accumulators only --------------------------------------------------------------------------------------------------------

template <int R>
void tile_bf16(const Tile& tile, Prefetcher& prefetcher, float (*out)[PANEL]) {
    Prefetcher next = prefetcher;
    const size_t row_bytes = tile.row_bytes;
    F32 acc[R][2];
    OCTAVO_UNROLL for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = zero();
    const uint8_t* w = tile.panel;
    const uint8_t* x = tile.rows;
    const uint8_t* end = x + size_t(tile.k + 1) / 2 * 4;
    while (x < end) {
        next.step();
        const uint8_t* stop = end - x > 4 * PREFETCH_EVERY ? x + 4 * PREFETCH_EVERY : end;
        for (; x < stop; x += 4, w += PANEL * 4) {
            const I32 w0 = iload(w), w1 = iload(w + 64);
            OCTAVO_UNROLL for (int r = 0; r < R; r++) {
                const int32_t pair = word_at(x + r * row_bytes);
                acc[r][0] = dot_bf16(acc[r][0], w0, pair);
                acc[r][1] = dot_bf16(acc[r][1], w1, pair);
            }
        }
    }
    prefetcher = next;
    store_sums<R>(acc, out);
}

template <int R>
void tile_f32(const Tile& tile, Prefetcher& prefetcher, float (*out)[PANEL]) {
    Prefetcher next = prefetcher;
    const size_t stride = tile.row_bytes / 4;
    F32 acc[R][2];
    OCTAVO_UNROLL for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = zero();
    const float* w = reinterpret_cast<const float*>(tile.panel);
    const float* x = reinterpret_cast<const float*>(tile.rows);
    const float* end = x + tile.k;
    while (x < end) {
        next.step();
        const float* stop = end - x > PREFETCH_EVERY ? x + PREFETCH_EVERY : end;
        for (; x < stop; x++, w += PANEL) {
            const F32 w0 = load(w), w1 = load(w + LANES);
            OCTAVO_UNROLL for (int r = 0; r < R; r++) {
                const F32 value = set1(x[r * stride]);
                acc[r][0] = fma(w0, value, acc[r][0]);
                acc[r][1] = fma(w1, value, acc[r][1]);
            }
        }
    }
    prefetcher = next;
    store_sums<R>(acc, out);
}

// ---- quantised: integers in a block, float32 across blocks -----------------------------------------------------------------------------

// Adds the products of a block's weights with R rows' bytes from x on.
template <Format F, int R>
OCTAVO_INLINE void dot_block(const uint8_t* values, const uint8_t* x, I32 (*acc)[2]) {
    if constexpr (is_four_bit(F)) {
        const I32 nibble = iset1(0x0f0f0f0f);
        OCTAVO_UNROLL for (int j = 0; j < BLOCK / 8; j++) {
            const I32 w0 = iload(values + j * PANEL * 4), w1 = iload(values + j * PANEL * 4 + 64);
            const I32 low0 = w0 & nibble, low1 = w1 & nibble;
            OCTAVO_UNROLL for (int r = 0; r < R; r++) {
                const int32_t a = word_at(x + r * BLOCK + 4 * j);
                acc[r][0] = dot_u8s8(acc[r][0], low0, a);
                acc[r][1] = dot_u8s8(acc[r][1], low1, a);
            }
            const I32 high0 = shift_right<4>(w0) & nibble, high1 = shift_right<4>(w1) & nibble;
            OCTAVO_UNROLL for (int r = 0; r < R; r++) {
                const int32_t a = word_at(x + r * BLOCK + BLOCK / 2 + 4 * j);
                acc[r][0] = dot_u8s8(acc[r][0], high0, a);
                acc[r][1] = dot_u8s8(acc[r][1], high1, a);
            }
        }
    } else {
        OCTAVO_UNROLL for (int j = 0; j < BLOCK / 4; j++) {
            const I32 w0 = iload(values + j * PANEL * 4), w1 = iload(values + j * PANEL * 4 + 64);
            OCTAVO_UNROLL for (int r = 0; r < R; r++) {
                const int32_t a = word_at(x + r * BLOCK + 4 * j);
                acc[r][0] = dot_u8s8(acc[r][0], w0, a);
                acc[r][1] = dot_u8s8(acc[r][1], w1, a);
            }
        }
    }
}

// A wide block's second half: 256 times the sums so far, plus the products with the low bytes. Out of line, so that the registers of
// the common case are its own.
template <Format F, int R>
__attribute__((noinline)) void widen_block(const uint8_t* values, const uint8_t* low, const BlockTerms* terms, int32_t* sums) {
    I32 acc[R][2];
    OCTAVO_UNROLL for (int r = 0; r < R; r++) {
        const I32 start = has_minimum(F) ? izero() : iset1(terms[r].low_start);
        OCTAVO_UNROLL for (int i = 0; i < 2; i++) acc[r][i] = shift_left<8>(iload(sums + (2 * r + i) * LANES)) + start;
    }
    dot_block<F, R>(values, low, acc);
    OCTAVO_UNROLL for (int r = 0; r < R; r++) {
        OCTAVO_UNROLL for (int i = 0; i < 2; i++) istore(sums + (2 * r + i) * LANES, acc[r][i]);
    }
}

template <Format F, int R>
void tile_bytes(const Tile& tile, Prefetcher& prefetcher, float (*out)[PANEL]) {
    Prefetcher next = prefetcher;
    const int blocks = (tile.k + BLOCK - 1) / BLOCK;
    const uint8_t* x = tile.rows + tile.first * BLOCK;
    const BlockTerms* terms = group_terms(tile.rows, blocks) + tile.first;
    const uint32_t* flags = group_wide(tile.rows, blocks) + tile.first;
    uint32_t wide = 0;  // the next blocks, lowest bit first: which are wide in any of the rows
    F32 sum[R][2];
    OCTAVO_UNROLL for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = zero();
    constexpr bool by_row = F == Format::U8_ROW;
    const uint8_t* w = tile.panel + (by_row ? header_bytes(F) : 0);
    for (int b = 0; b < blocks; b++) {
        const uint8_t* values = w + (by_row ? 0 : header_bytes(F));
        next.step();
        if (b % 32 == 0) {
            wide = 0;
            OCTAVO_UNROLL for (int r = 0; r < R; r++) wide |= flags[r];
            flags += GROUP_ROWS;
        }
        I32 acc[R][2];
        OCTAVO_UNROLL for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = has_minimum(F) ? izero() : iset1(terms[r].high_start);
        dot_block<F, R>(values, x, acc);
        F32 unit = set1(1.0f);
        if (__builtin_expect(wide >> (b % 32) & 1, 0)) {
            alignas(64) int32_t sums[R * 2 * LANES];
            OCTAVO_UNROLL for (int r = 0; r < R; r++) istore(sums + 2 * r * LANES, acc[r][0]), istore(sums + (2 * r + 1) * LANES, acc[r][1]);
            widen_block<F, R>(values, x + low_offset(blocks), terms, sums);
            OCTAVO_UNROLL for (int r = 0; r < R; r++) acc[r][0] = iload(sums + 2 * r * LANES), acc[r][1] = iload(sums + (2 * r + 1) * LANES);
            unit = set1(0.00390625f);  // 1 / 256
        }
        if constexpr (by_row) {
            OCTAVO_UNROLL for (int r = 0; r < R; r++) {
                const F32 scale = set1(terms[r].scale) * unit;
                sum[r][0] = fma(to_f32(acc[r][0]), scale, sum[r][0]);
                sum[r][1] = fma(to_f32(acc[r][1]), scale, sum[r][1]);
            }
        } else {
            const F32 d0 = load_f16(w) * unit, d1 = load_f16(w + 32) * unit;
            OCTAVO_UNROLL for (int r = 0; r < R; r++) {
                const F32 scale = set1(terms[r].scale);
                sum[r][0] = fma(to_f32(acc[r][0]), d0 * scale, sum[r][0]);
                sum[r][1] = fma(to_f32(acc[r][1]), d1 * scale, sum[r][1]);
            }
        }
        if constexpr (has_minimum(F)) {
            const F32 m0 = load_f16(w + 64), m1 = load_f16(w + 96);
            OCTAVO_UNROLL for (int r = 0; r < R; r++) {
                const F32 block_sum = set1(terms[r].sum);
                sum[r][0] = fma(m0, block_sum, sum[r][0]);
                sum[r][1] = fma(m1, block_sum, sum[r][1]);
            }
        }
        w += block_bytes(F);
        x += GROUP_ROWS * BLOCK;
        terms += GROUP_ROWS;
    }
    if constexpr (by_row) {
        const F32 d0 = load(reinterpret_cast<const float*>(tile.panel)), d1 = load(reinterpret_cast<const float*>(tile.panel) + LANES);
        OCTAVO_UNROLL for (int r = 0; r < R; r++) {
            sum[r][0] = sum[r][0] * d0;
            sum[r][1] = sum[r][1] * d1;
        }
    }
    prefetcher = next;
    store_sums<R>(sum, out);
}

}  // namespace
}  // namespace octavo::OCTAVO_ISA
