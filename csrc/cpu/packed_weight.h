// A weight W [n, k] laid out for the products: column tiles of 16 outputs, so that one vector holds the same few k of 16 outputs.
//
// Two tiles side by side make a panel of 32 columns; a thread owns whole panels and streams each front to back. Within a panel:
//
//   F32           [k][32] float
//   BF16          [k / 2][32][2]                           pairs of k, as vdpbf16ps reads them; k rounded up to 32
//   U8_ROW        float scale[32], then [k / 4][32][4] bytes, fours of k as vpdpbusd reads them
//   U8_WIDE       the same, k rounded up to 64: for rows of 16 bits (AMX)
//   U8_BLOCK      for each block of 32 k: half scale[32], then [8][32][4] bytes
//   U8_BLOCK_MIN  for each block of 32 k: half scale[32], half minimum[32], then [8][32][4] bytes
//   U4_BLOCK      for each block of 32 k: half scale[32], then [4][32][4] bytes; in the j-th four, byte i holds k = 4 j + i in its low
//                 nibble and k = 16 + 4 j + i in its high one
//   U4_BLOCK_MIN  the same with minima
//   U4_TABLE      for each block of 32 k, for each 16 columns: half scale[16], then [4][32] words; nibble i of word k of line j is column
//                 4 j + i's, so that a column's 32 values are looked up at once (for AMX: linear_tiles_amx.h)
//   U4_TABLE_MIN  the same, minimum[16] after the scales
//
// Bytes are unsigned: value = scale * (byte - zero) + minimum. Columns past n and rows past k are zero.
// A paired weight holds gate and up [2 i, k]: tile 0 of panel p has gate's columns 16 p .. 16 p + 15, tile 1 up's.
#pragma once

#include <cstddef>
#include <cstdint>

// This header is compiled for every instruction set: no function of it may be shared between them by the linker.
#define OCTAVO_LOCAL static inline __attribute__((always_inline))

namespace octavo {

constexpr int PANEL = 32;   // columns
constexpr int BLOCK = 32;   // values of k that share a scale

enum class Format : int { F32, BF16, U8_ROW, U8_BLOCK, U8_BLOCK_MIN, U4_BLOCK, U4_BLOCK_MIN, U4_TABLE, U4_TABLE_MIN, U8_WIDE };

OCTAVO_LOCAL constexpr bool is_dense(Format f) { return f == Format::F32 || f == Format::BF16; }
OCTAVO_LOCAL constexpr bool has_minimum(Format f) { return f == Format::U8_BLOCK_MIN || f == Format::U4_BLOCK_MIN || f == Format::U4_TABLE_MIN; }
OCTAVO_LOCAL constexpr bool is_by_row(Format f) { return f == Format::U8_ROW || f == Format::U8_WIDE; }  // one scale a row
OCTAVO_LOCAL constexpr bool is_wide(Format f) { return f == Format::U8_WIDE; }
OCTAVO_LOCAL constexpr bool is_table(Format f) { return f == Format::U4_TABLE || f == Format::U4_TABLE_MIN; }
OCTAVO_LOCAL constexpr bool needs_amx(Format f) { return is_table(f) || is_wide(f); }
OCTAVO_LOCAL constexpr bool is_four_bit(Format f) { return f == Format::U4_BLOCK || f == Format::U4_BLOCK_MIN || is_table(f); }

struct PackedWeight {
    Format format = Format::BF16;
    int n = 0;          // rows of W; both halves together where paired
    int k = 0;
    int zero = 0;       // of quantised formats without a minimum
    bool paired = false;
    int panels = 0;
    size_t panel_bytes = 0;
    uint8_t* data = nullptr;      // 64-byte aligned
    const float* bias = nullptr;  // [panels * 32] in panel order, or null

    __attribute__((always_inline)) int blocks() const { return (k + BLOCK - 1) / BLOCK; }
    __attribute__((always_inline)) int outputs() const { return paired ? n / 2 : n; }
    __attribute__((always_inline)) size_t bytes() const { return size_t(panels) * panel_bytes; }
    // Where row r of W is a column: panel * 32 + lane.
    __attribute__((always_inline)) int column_of(int r) const {
        if (!paired) return r;
        const int half = n / 2, i = r < half ? r : r - half;
        return i / 16 * PANEL + (r < half ? 0 : 16) + i % 16;
    }
};

// Bytes before the values: of a block's scales and minima, or of a panel's scales.
OCTAVO_LOCAL constexpr size_t header_bytes(Format f) {
    switch (f) {
        case Format::U8_ROW: case Format::U8_WIDE: return PANEL * 4;
        case Format::U8_BLOCK: case Format::U4_BLOCK: case Format::U4_TABLE: return PANEL * 2;
        case Format::U8_BLOCK_MIN: case Format::U4_BLOCK_MIN: case Format::U4_TABLE_MIN: return PANEL * 4;
        default: return 0;
    }
}

OCTAVO_LOCAL constexpr size_t block_bytes(Format f) {  // of the quantised formats: one block of 32 k of a panel
    const size_t values = size_t(PANEL) * BLOCK / (is_four_bit(f) ? 2 : 1);
    return values + (is_by_row(f) ? 0 : header_bytes(f));
}

// Of a table's block: where the part of 16 columns begins, and its values.
OCTAVO_LOCAL constexpr size_t table_part(Format f, int half) { return size_t(half) * block_bytes(f) / 2; }
OCTAVO_LOCAL constexpr size_t table_values(Format f) { return header_bytes(f) / 2; }

OCTAVO_LOCAL size_t panel_bytes_of(Format f, int k) {
    if (f == Format::F32) return size_t(k) * PANEL * 4;
    if (f == Format::BF16) return size_t((k + BLOCK - 1) / BLOCK) * BLOCK * PANEL * 2;
    if (is_wide(f)) return header_bytes(f) + size_t(k + 2 * BLOCK - 1) / (2 * BLOCK) * 2 * block_bytes(f);
    return (is_by_row(f) ? header_bytes(f) : 0) + size_t((k + BLOCK - 1) / BLOCK) * block_bytes(f);
}

OCTAVO_LOCAL int panels_of(int n, bool paired) { return paired ? (n / 2 + 15) / 16 : (n + PANEL - 1) / PANEL; }

}  // namespace octavo
