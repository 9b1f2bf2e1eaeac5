// The inner loops of the products by AMX (amx.h): bf16 weights for any rows, quantised ones for more than a few.
#pragma once

#include "amx.h"
#include "linear_tiles.h"

#if defined(OCTAVO_AMX)

namespace octavo::OCTAVO_ISA {
namespace {

static_assert(TILE_ROWS == GROUP_ROWS);
constexpr int AMX_BYTE_ROWS = 6;  // fewer rows of bytes are faster without tiles

// Sums in tiles 0 to 3, rows in 4 and 5, weights in 6 and 7.
TileShapes tile_shapes(Format format) {
    TileShapes shapes;
    const int k_bytes = format == Format::BF16 ? TILE_BYTES : BLOCK;
    for (int i = 0; i < 8; i++) {
        shapes.rows[i] = i < 6 ? TILE_ROWS : uint8_t(k_bytes / 4);
        shapes.row_bytes[i] = i == 4 || i == 5 ? uint16_t(k_bytes) : TILE_BYTES;
    }
    return shapes;
}

// Up to 32 rows. TWO: more than 16.
template <bool TWO>
void amx_tile_bf16(const Tile& tile, Prefetcher& prefetcher, float (*out)[PANEL]) {
    Prefetcher next = prefetcher;
    const size_t row_bytes = tile.row_bytes;
    const uint8_t* w = tile.panel;
    const uint8_t* x = tile.rows;
    clear_tile<0>(), clear_tile<1>();
    if constexpr (TWO) clear_tile<2>(), clear_tile<3>();
    for (int k = 0; k < tile.k; k += TILE_BYTES / 2, w += TILE_ROWS * PANEL * 4, x += TILE_BYTES) {
        next.step();
        load_tile<6>(w, PANEL * 4);
        load_tile<4>(x, row_bytes);
        add_bf16_products<0, 4, 6>();
        load_tile<7>(w + TILE_BYTES, PANEL * 4);
        add_bf16_products<1, 4, 7>();
        if constexpr (TWO) {
            load_tile<5>(x + TILE_ROWS * row_bytes, row_bytes);
            add_bf16_products<2, 5, 6>();
            add_bf16_products<3, 5, 7>();
        }
    }
    prefetcher = next;
    store_tile<0>(out, PANEL * 4), store_tile<1>(out[0] + LANES, PANEL * 4);
    if constexpr (TWO) store_tile<2>(out[TILE_ROWS], PANEL * 4), store_tile<3>(out[TILE_ROWS] + LANES, PANEL * 4);
}

// A panel's four-bit values as bytes, [k / 4][32][4].
void unpack_panel(const PackedWeight& weight, const uint8_t* panel, uint8_t* out) {
    const I32 nibble = iset1(0x0f0f0f0f);
    const size_t header = header_bytes(weight.format);
    constexpr int lines = PANEL * BLOCK / 2 / TILE_BYTES;
    for (int b = 0; b < weight.blocks(); b++, panel += block_bytes(weight.format), out += PANEL * BLOCK) {
        OCTAVO_UNROLL for (int i = 0; i < lines; i++) {
            const I32 w = iload(panel + header + i * TILE_BYTES);
            istore(out + i * TILE_BYTES, w & nibble);
            istore(out + (lines + i) * TILE_BYTES, shift_right<4>(w) & nibble);
        }
    }
}

// As tile_bytes, to the bit: the same whole numbers, then the same steps. Up to R rows, which are the first of their group; 16 columns
// after the other, so that the sums fit the registers. What a tile holds reaches the registers through memory: so the next block's
// products are made while a block's are scaled and added.
template <Format F, int R>
void amx_tile_bytes(const Tile& tile, Prefetcher& prefetcher, float (*out)[PANEL]) {
    constexpr bool by_row = F == Format::U8_ROW;
    constexpr size_t value_bytes = is_four_bit(F) ? PANEL * BLOCK : block_bytes(F);  // from a block's values to the next one's
    Prefetcher next = prefetcher;
    const int blocks = (tile.k + BLOCK - 1) / BLOCK, height = tile.height;
    alignas(64) int32_t high[2][TILE_ROWS][LANES], low[TILE_ROWS][LANES];
    for (int half = 0; half < 2; half++) {
        const uint8_t* values = (is_four_bit(F) ? tile.unpacked : tile.panel + header_bytes(F)) + half * TILE_BYTES;
        const uint8_t* scales = tile.panel + half * LANES * 2;
        const BlockTerms* terms = group_terms(tile.rows, blocks);
        const auto multiply = [&](int b, int32_t (*products)[LANES]) __attribute__((always_inline)) {
            load_tile<4>(tile.rows + b * GROUP_ROWS * BLOCK, BLOCK);
            load_tile<6>(values + b * value_bytes, PANEL * 4);
            clear_tile<0>();
            add_byte_products<0, 4, 6>();
            store_tile<0>(products, TILE_BYTES);
        };
        uint32_t wide = 0;
        F32 sum[R];
        OCTAVO_UNROLL for (int r = 0; r < R; r++) sum[r] = zero();
        const auto add = [&](int b, int32_t (*products)[LANES]) __attribute__((always_inline)) {
            if (b % 32 == 0) {
                const uint32_t* flags = group_wide(tile.rows, blocks) + b / 32 * GROUP_ROWS;
                wide = 0;
                for (int r = 0; r < height; r++) wide |= flags[r];
            }
            F32 unit = set1(1.0f);
            if (__builtin_expect(wide >> (b % 32) & 1, 0)) {
                load_tile<5>(tile.rows + low_offset(blocks) + b * GROUP_ROWS * BLOCK, BLOCK);
                load_tile<7>(values + b * value_bytes, PANEL * 4);
                clear_tile<1>();
                add_byte_products<1, 5, 7>();
                store_tile<1>(low, TILE_BYTES);
                for (int r = 0; r < R; r++) {  // what starts the sums of high bytes is added below, once
                    const I32 start = has_minimum(F) ? izero() : iset1(terms[r].high_start * 255 + terms[r].low_start);
                    istore(products[r], shift_left<8>(iload(products[r])) + iload(low[r]) + start);
                }
                unit = set1(0.00390625f);  // 1 / 256
            }
            const auto sum_of = [&](int r) __attribute__((always_inline)) {
                const I32 all = iload(products[r]);
                return to_f32(has_minimum(F) ? all : all + iset1(terms[r].high_start));
            };
            if constexpr (by_row) {
                OCTAVO_UNROLL for (int r = 0; r < R; r++) sum[r] = fma(sum_of(r), set1(terms[r].scale) * unit, sum[r]);
            } else {
                const F32 d = load_f16(scales) * unit;
                OCTAVO_UNROLL for (int r = 0; r < R; r++) sum[r] = fma(sum_of(r), d * set1(terms[r].scale), sum[r]);
            }
            if constexpr (has_minimum(F)) {
                const F32 m = load_f16(scales + PANEL * 2);
                OCTAVO_UNROLL for (int r = 0; r < R; r++) sum[r] = fma(m, set1(terms[r].sum), sum[r]);
            }
            scales += block_bytes(F);
            terms += GROUP_ROWS;
        };
        multiply(0, high[0]);
        int b = 0;
        for (; b + 2 < blocks; b += 2) {
            next.step();
            multiply(b + 1, high[1]);
            add(b, high[0]);
            next.step();
            multiply(b + 2, high[0]);
            add(b + 1, high[1]);
        }
        if (b + 1 < blocks) multiply(b + 1, high[1]);
        add(b, high[0]);
        if (b + 1 < blocks) add(b + 1, high[1]);
        if constexpr (by_row) {
            const F32 d = load(reinterpret_cast<const float*>(tile.panel) + half * LANES);
            OCTAVO_UNROLL for (int r = 0; r < R; r++) sum[r] = sum[r] * d;
        }
        OCTAVO_UNROLL for (int r = 0; r < R; r++) store(out[r] + half * LANES, sum[r]);
    }
    prefetcher = next;
}

}  // namespace
}  // namespace octavo::OCTAVO_ISA

#endif
