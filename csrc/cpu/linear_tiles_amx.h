// The inner loops of the products by AMX (amx.h): bf16 weights for any rows, quantised ones for more than a few.
#pragma once

#include "amx.h"
#include "linear_tiles.h"

#if defined(OCTAVO_AMX)

namespace octavo::OCTAVO_ISA {
namespace {

static_assert(TILE_ROWS == GROUP_ROWS);
constexpr int AMX_BYTE_ROWS = TILE_ROWS;  // fewer rows of bytes are faster without tiles

// Sums in tiles 0 to 3, the left side in 4 and 5, the right one in 6 and 7.
TileShapes tile_shapes(Format format) {
    TileShapes shapes;
    const int k_bytes = format == Format::BF16 || needs_amx(format) ? TILE_BYTES : BLOCK;
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
        stream_tile<6>(w, PANEL * 4);
        load_tile<4>(x, row_bytes);
        add_bf16_products<0, 4, 6>();
        stream_tile<7>(w + TILE_BYTES, PANEL * 4);
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

// As tile_bytes, to the bit: the same whole numbers, then the same steps. A whole group of rows; 16 columns after the other, so that the
// sums fit the registers. What a tile holds reaches the registers through memory: so the next block's products are made while a block's
// are scaled and added.
template <Format F>
void amx_tile_bytes(const Tile& tile, Prefetcher& prefetcher, float (*out)[PANEL]) {
    constexpr bool by_row = F == Format::U8_ROW;
    constexpr int R = TILE_ROWS;
    constexpr size_t value_bytes = is_four_bit(F) ? PANEL * BLOCK : block_bytes(F);  // from a block's values to the next one's
    Prefetcher next = prefetcher;
    const int blocks = (tile.k + BLOCK - 1) / BLOCK;
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
                for (int r = 0; r < R; r++) wide |= flags[r];
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

// ---- rows of 16 bits -------------------------------------------------------------------------------------------------------------------

// A group of rows: the sums of their high and of their low bytes are whole numbers to the end.
void amx_tile_wide(const Tile& tile, Prefetcher& prefetcher, float (*out)[PANEL]) {
    Prefetcher next = prefetcher;
    const size_t part_bytes = wide_part_bytes(tile.k);
    const uint8_t* w = tile.panel + header_bytes(Format::U8_WIDE);
    const uint8_t* high = tile.rows;
    clear_tile<0>(), clear_tile<1>(), clear_tile<2>(), clear_tile<3>();
    for (int k = 0; k < tile.k; k += TILE_BYTES, w += TILE_ROWS * PANEL * 4, high += TILE_ROWS * TILE_BYTES) {
        next.step();
        load_tile<4>(high, TILE_BYTES);
        stream_tile<6>(w, PANEL * 4);
        add_byte_products<0, 4, 6>();
        stream_tile<7>(w + TILE_BYTES, PANEL * 4);
        add_byte_products<1, 4, 7>();
        load_tile<5>(high + part_bytes, TILE_BYTES);
        add_byte_products<2, 5, 6>();
        add_byte_products<3, 5, 7>();
    }
    prefetcher = next;
    alignas(64) int32_t sums[4][TILE_ROWS][LANES];
    store_tile<0>(sums[0], TILE_BYTES), store_tile<1>(sums[1], TILE_BYTES);
    store_tile<2>(sums[2], TILE_BYTES), store_tile<3>(sums[3], TILE_BYTES);
    const WideTerms* terms = reinterpret_cast<const WideTerms*>(tile.rows + 2 * part_bytes);
    for (int half = 0; half < 2; half++) {
        const F32 d = load(reinterpret_cast<const float*>(tile.panel) + half * LANES) * set1(1.0f / WIDE_STEPS);
        for (int r = 0; r < tile.height; r++) {
            const F32 upper = to_f32(iload(sums[half][r]) + iset1(terms[r].high_start));
            const F32 lower = to_f32(iload(sums[2 + half][r]) + iset1(terms[r].low_start));
            store(out[r] + half * LANES, fma(upper, set1(256.0f), lower) * d * set1(terms[r].largest));
        }
    }
}

// ---- looked-up weights -----------------------------------------------------------------------------------------------------------------

// 16 columns of a block as bf16, [16 columns][32 k]: the left side of a product. A column's 16 possible values are computed, rounded and
// put side by side with its neighbour's; one permutation then looks up 32 of them. Per value a third of the work of converting it.
template <bool MIN>
OCTAVO_INLINE void expand_part(const uint8_t* part, float zero_point, uint8_t* out) {
    alignas(64) float scales[LANES], minima[LANES];
    const F32 d = load_f16(part);
    store(scales, d);
    store(minima, MIN ? load_f16(part + LANES * 2) : d * set1(-zero_point));
    const uint8_t* values = part + (MIN ? 4 : 2) * LANES;
    const __m512 q = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i nibble = _mm512_set1_epi16(15), second = _mm512_set1_epi16(16);
    const auto table = [&](int c) __attribute__((always_inline)) {
        return _mm512_fmadd_ps(q, _mm512_set1_ps(scales[c]), _mm512_set1_ps(minima[c]));
    };
    OCTAVO_UNROLL for (int line = 0; line < 4; line++) {
        const __m512i words = iload(values + line * TILE_BYTES).v;
        const int c = 4 * line;
        const __m512i first = (__m512i)_mm512_cvtne2ps_pbh(table(c + 1), table(c)), last = (__m512i)_mm512_cvtne2ps_pbh(table(c + 3), table(c + 2));
        const auto put = [&](int column, __m512i index, __m512i of) __attribute__((always_inline)) {
            istore(out + column * TILE_BYTES, {_mm512_permutexvar_epi16(index, of)});
        };
        put(c, words & nibble, first);
        put(c + 1, (_mm512_srli_epi16(words, 4) & nibble) | second, first);
        put(c + 2, _mm512_srli_epi16(words, 8) & nibble, last);
        put(c + 3, _mm512_srli_epi16(words, 12) | second, last);
    }
}

constexpr int PART_BYTES = TILE_ROWS * TILE_BYTES;  // 16 columns of a block as bf16

template <bool MIN>
OCTAVO_INLINE void expand_block(const uint8_t* block, float zero_point, uint8_t* out) {
    constexpr Format F = MIN ? Format::U4_TABLE_MIN : Format::U4_TABLE;
    expand_part<MIN>(block, zero_point, out);
    expand_part<MIN>(block + table_part(F, 1), zero_point, out + PART_BYTES);
}

// A panel: [k / 32][2][16 columns][32 k].
void expand_panel(const PackedWeight& weight, const uint8_t* panel, uint8_t* out) {
    const float zero_point = float(weight.zero);
    for (int b = 0; b < weight.blocks(); b++, panel += block_bytes(weight.format), out += 2 * PART_BYTES) {
        if (has_minimum(weight.format)) expand_block<true>(panel, zero_point, out);
        else expand_block<false>(panel, zero_point, out);
    }
}

// 16 columns x 16 rows of sums, to the rows' places.
void turn(const float (*columns)[LANES], float (*out)[PANEL], int rows) {
    if (rows <= 4) {
        const __m512i lines = _mm512_slli_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), 6);
        for (int r = 0; r < rows; r++) store(out[r], {_mm512_i32gather_ps(lines, columns[0] + r, 1)});
        return;
    }
    __m512 x[LANES], y[LANES];
    OCTAVO_UNROLL for (int i = 0; i < LANES; i++) x[i] = load(columns[i]).v;
    OCTAVO_UNROLL for (int i = 0; i < LANES; i += 2) {  // y[4 j + ..]: pairs of columns
        y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    OCTAVO_UNROLL for (int i = 0; i < LANES; i += 4) {  // x[4 j + r]: four columns' rows r, r + 4, r + 8, r + 12
        x[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(y[i]), _mm512_castps_pd(y[i + 2])));
        x[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(y[i]), _mm512_castps_pd(y[i + 2])));
        x[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(y[i + 1]), _mm512_castps_pd(y[i + 3])));
        x[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(y[i + 1]), _mm512_castps_pd(y[i + 3])));
    }
    OCTAVO_UNROLL for (int r = 0; r < 4; r++) {
        const __m512 a = _mm512_shuffle_f32x4(x[r], x[4 + r], 0x88), b = _mm512_shuffle_f32x4(x[8 + r], x[12 + r], 0x88);  // rows r, r + 8
        const __m512 c = _mm512_shuffle_f32x4(x[r], x[4 + r], 0xdd), d = _mm512_shuffle_f32x4(x[8 + r], x[12 + r], 0xdd);  // r + 4, r + 12
        store(out[r], {_mm512_shuffle_f32x4(a, b, 0x88)});
        store(out[r + 4], {_mm512_shuffle_f32x4(c, d, 0x88)});
        store(out[r + 8], {_mm512_shuffle_f32x4(a, b, 0xdd)});
        store(out[r + 12], {_mm512_shuffle_f32x4(c, d, 0xdd)});
    }
}

// Weights times rows, the sums turned at the end: one or TWO groups of up to 16 rows. Where there are no others, blocks are expanded here,
// one ahead of the products; MIN is of use only then.
template <bool TWO, bool EXPAND, bool MIN>
void amx_tile_table(const Tile& tile, Prefetcher& prefetcher, float (*out)[PANEL]) {
    alignas(64) uint8_t expanded[2][2 * PART_BYTES];
    Prefetcher next = prefetcher;
    const int blocks = (tile.k + BLOCK - 1) / BLOCK;
    const size_t group_bytes = size_t(blocks) * PART_BYTES;
    const float zero_point = float(tile.zero);
    const auto expand = [&](int b) __attribute__((always_inline)) {
        constexpr Format F = MIN ? Format::U4_TABLE_MIN : Format::U4_TABLE;
        expand_block<MIN>(tile.panel + b * block_bytes(F), zero_point, expanded[b % 2]);
    };
    clear_tile<0>(), clear_tile<1>();
    if constexpr (TWO) clear_tile<2>(), clear_tile<3>();
    if constexpr (EXPAND) expand(0);
    for (int b = 0; b < blocks; b++) {
        next.step();
        if constexpr (EXPAND)
            if (b + 1 < blocks) expand(b + 1);
        const uint8_t* w = EXPAND ? expanded[b % 2] : tile.unpacked + b * 2 * PART_BYTES;
        const uint8_t* x = tile.rows + b * PART_BYTES;
        stream_tile<4>(w, TILE_BYTES);
        load_tile<6>(x, TILE_BYTES);
        add_bf16_products<0, 4, 6>();
        stream_tile<5>(w + PART_BYTES, TILE_BYTES);
        add_bf16_products<1, 5, 6>();
        if constexpr (TWO) {
            load_tile<7>(x + group_bytes, TILE_BYTES);
            add_bf16_products<2, 4, 7>();
            add_bf16_products<3, 5, 7>();
        }
    }
    prefetcher = next;
    alignas(64) float columns[4][TILE_ROWS][LANES];
    store_tile<0>(columns[0], TILE_BYTES), store_tile<1>(columns[1], TILE_BYTES);
    if constexpr (TWO) store_tile<2>(columns[2], TILE_BYTES), store_tile<3>(columns[3], TILE_BYTES);
    for (int i = 0; i < (TWO ? 4 : 2); i++) {
        float* to = out[i / 2 * TILE_ROWS] + i % 2 * LANES;
        turn(columns[i], reinterpret_cast<float(*)[PANEL]>(to), tile.height - i / 2 * TILE_ROWS);
    }
}

}  // namespace
}  // namespace octavo::OCTAVO_ISA

#endif
