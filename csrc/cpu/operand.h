// The left side of a product: rows of activations in the type that the weight's format multiplies.
//
//   F32    float [k]
//   BF16   bf16 [k rounded up to 32]
//   bytes  for the quantised formats, by blocks of 32 k (B of them), one scale a block:
//            int8  high[B * 32]     x is about scale * high ...
//            int8  low[B * 32]      ... and in a wide block scale * (high + low / 256); 0 elsewhere
//            BlockTerms terms[B]
//            uint32 wide[ceil(B / 32)]       bit b: block b is wide
//
// Wide blocks are the few of a row whose largest value is more than three times the mean of the blocks' largest: there a step of a 127th of
// the largest is what costs answers (docs/performance.md, "What quantisation costs"), and a second byte brings it to nothing. Products
// with it double the work of those blocks only. A narrow block computed as if wide gives the same bits: its low bytes are 0, and the
// factor of 256 is exact.
#pragma once

#include <cstddef>
#include <cstdint>

#include "packed_weight.h"

namespace octavo {

constexpr int OPERAND_ROWS = 16;  // kernels may read rows up to a multiple of this: there is memory, whatever it holds

constexpr float WIDE_ABOVE = 3.0f;  // times the mean of the row's block maxima

// What a block of a row brings to a product beside its bytes.
struct BlockTerms {
    float scale;
    float sum;           // of the block's values: multiplies a weight's minimum
    int32_t high_start;  // -zero times the sum of the high bytes: what the integer sum starts from
    int32_t low_start;   // the same for the low ones
};

// An odd number of cache lines: rows at a multiple of 4096 bytes would all want the same few places of the level-1 cache.
OCTAVO_LOCAL size_t operand_row_bytes(Format format, int k) {
    const size_t blocks = size_t(k + BLOCK - 1) / BLOCK;
    size_t bytes = 0;
    if (format == Format::F32) bytes = size_t(k) * 4;
    else if (format == Format::BF16) bytes = blocks * BLOCK * 2;
    else bytes = blocks * (2 * BLOCK + sizeof(BlockTerms)) + (blocks + 31) / 32 * 4;
    return ((bytes + 63) / 64 | 1) * 64;
}

// Memory of `rows` rows.
OCTAVO_LOCAL size_t operand_bytes(size_t row_bytes, int rows) { return size_t(rows + OPERAND_ROWS - 1) / OPERAND_ROWS * OPERAND_ROWS * row_bytes; }

// A product's use of a thread's scratch: a few rows of the operand, a row in float32, a panel's four-bit values as bytes.
OCTAVO_LOCAL size_t unpacked_offset(size_t row_bytes, int k) { return OPERAND_ROWS * row_bytes + (size_t(k) * 4 + 63) / 64 * 64; }
OCTAVO_LOCAL size_t linear_scratch_bytes(Format format, int k) {
    return unpacked_offset(operand_row_bytes(format, k), k) + (is_four_bit(format) ? size_t(k + BLOCK - 1) / BLOCK * BLOCK * PANEL : 0);
}

// Where the parts of a row of bytes begin, in bytes from its start.
OCTAVO_LOCAL size_t low_offset(int blocks) { return size_t(blocks) * BLOCK; }
OCTAVO_LOCAL size_t terms_offset(int blocks) { return size_t(blocks) * BLOCK * 2; }
OCTAVO_LOCAL size_t wide_offset(int blocks) { return terms_offset(blocks) + size_t(blocks) * sizeof(BlockTerms); }

}  // namespace octavo
