// The left side of a product: rows of activations in the type that the weight's format multiplies.
//
//   F32    float [k]
//   BF16   bf16 [k rounded up to 32]
//   pairs  for U4_TABLE: bf16 [k / 32][16 pairs of k][16 rows][2], in groups of 16 rows: the right side of a product by AMX
//   wide   for U8_WIDE: int16 as high and low bytes, x is about largest / 32512 * (256 high + low); in groups of 16 rows:
//            int8 high[k / 64][16][64], low[k / 64][16][64], WideTerms terms[16]
//   bytes  for the other quantised formats, by blocks of 32 k (B of them), one scale a block, and in groups of 16 rows:
//            int8  high[B][16][32]   x is about scale * high ...
//            int8  low[B][16][32]    ... and in a wide block scale * (high + low / 256); 0 elsewhere
//            BlockTerms terms[B][16]
//            uint32 wide[ceil(B / 32)][16]   bit b: block b is wide
//          what one block needs of all rows of a group is together: a tile's 16 x 32 bytes are 8 whole lines of the cache.
//
// Wide blocks are the few of a row whose largest value is more than three times the mean of the blocks' largest: there a step of a 127th of
// the largest is what costs answers (docs/performance.md, "What quantisation costs"), and a second byte brings it to nothing. Products
// with it double the work of those blocks only. A narrow block computed as if wide gives the same bits: its low bytes are 0, and the
// factor of 256 is exact.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "packed_weight.h"

namespace octavo {

constexpr int GROUP_ROWS = 16;  // there is memory for whole groups of rows, whatever it holds: kernels may read it
// Rows that no other thread should write at the same time: they have parts in one line of the cache.
OCTAVO_LOCAL constexpr int rows_together(Format f) { return is_table(f) ? GROUP_ROWS : 4; }

constexpr float WIDE_ABOVE = 3.0f;  // times the mean of the row's block maxima

// What a block of a row brings to a product beside its bytes.
struct BlockTerms {
    float scale;
    float sum;           // of the block's values: multiplies a weight's minimum
    int32_t high_start;  // -zero times the sum of the high bytes: what the integer sum starts from
    int32_t low_start;   // the same for the low ones
};

// Of a dense row. An odd number of cache lines: rows at multiples of 4096 bytes would all want the same few places of the level-1 cache.
OCTAVO_LOCAL size_t operand_row_bytes(Format format, int k) {
    const size_t blocks = size_t(k + BLOCK - 1) / BLOCK, bytes = format == Format::F32 ? size_t(k) * 4 : blocks * BLOCK * 2;
    return ((bytes + 63) / 64 | 1) * 64;
}

constexpr float WIDE_STEPS = 32512.0f;  // of a row's largest magnitude: so that the high bytes of rounded halves fit
struct WideTerms {
    float largest;
    int32_t high_start, low_start;  // -zero times the sums of the bytes
    int32_t unused;
};

OCTAVO_LOCAL size_t wide_part_bytes(int k) { return size_t(k + 63) / 64 * GROUP_ROWS * 64; }  // of a group: its high bytes, or its low ones

OCTAVO_LOCAL size_t operand_group_bytes(Format format, int k) {
    if (is_dense(format)) return GROUP_ROWS * operand_row_bytes(format, k);
    const size_t blocks = size_t(k + BLOCK - 1) / BLOCK;
    if (is_table(format)) return GROUP_ROWS * blocks * BLOCK * 2;
    if (is_wide(format)) return 2 * wide_part_bytes(k) + GROUP_ROWS * sizeof(WideTerms);
    return GROUP_ROWS * (blocks * (2 * BLOCK + sizeof(BlockTerms)) + (blocks + 31) / 32 * 4);
}

OCTAVO_LOCAL size_t groups_of(int rows) { return size_t(rows + GROUP_ROWS - 1) / GROUP_ROWS; }

// Where the parts of a group of byte rows begin.
OCTAVO_LOCAL size_t low_offset(int blocks) { return size_t(blocks) * GROUP_ROWS * BLOCK; }
template <class Byte>
OCTAVO_LOCAL auto group_terms(Byte* group, int blocks) {
    return reinterpret_cast<std::conditional_t<std::is_const_v<Byte>, const BlockTerms, BlockTerms>*>(group + 2 * low_offset(blocks));
}
template <class Byte>
OCTAVO_LOCAL auto group_wide(Byte* group, int blocks) {
    return reinterpret_cast<std::conditional_t<std::is_const_v<Byte>, const uint32_t, uint32_t>*>(group_terms(group, blocks) + blocks * GROUP_ROWS);
}

// A product's use of a thread's scratch: a group of the operand, a row in float32, four-bit values of some panels as bytes or bf16.
constexpr size_t UNPACKED_BYTES = 192 * 1024;  // at once, but at least one panel
OCTAVO_LOCAL size_t unpacked_panel_bytes(Format format, int k) { return size_t(k + BLOCK - 1) / BLOCK * BLOCK * PANEL * (is_table(format) ? 2 : 1); }
OCTAVO_LOCAL size_t spare_offset(Format format, int k) { return operand_group_bytes(format, k); }
OCTAVO_LOCAL size_t unpacked_offset(Format format, int k) { return spare_offset(format, k) + (size_t(k) * 4 + 63) / 64 * 64; }
OCTAVO_LOCAL size_t linear_scratch_bytes(Format format, int k) {
    const size_t panel = is_four_bit(format) ? unpacked_panel_bytes(format, k) : 0;
    return unpacked_offset(format, k) + (panel && panel < UNPACKED_BYTES ? UNPACKED_BYTES : panel);
}

}  // namespace octavo
