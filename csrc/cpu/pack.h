// From a checkpoint's rows to a PackedWeight's panels.
#pragma once

#include <cstdint>

#include "packed_weight.h"

namespace octavo {

class Team;

// Rows of float32 or bf16 values.
struct DenseRows {
    const uint8_t* data;
    int64_t row_stride;  // bytes
    bool bf16;
};

// Rows of blocks of 32 small integers, as a quantised checkpoint stores them; strides in bytes. Four-bit blocks hold value i in the low
// nibble of byte i and value i + 16 in the high one.
struct BlockRows {
    const uint8_t* values;
    int64_t value_row, value_block;
    const uint8_t* scales;  // half for each block, or one float a row (value_block then does not apply)
    int64_t scale_row, scale_block;
    const uint8_t* minima;  // half for each block, or null
    int64_t minimum_row, minimum_block;
    int bits;        // 4 or 8
    bool is_signed;  // bytes are int8: 128 is added
};

// Write `rows` rows of W from row `first` on; the panels must have been zeroed. The team's threads share the rows.
void pack_dense(const PackedWeight& weight, const DenseRows& source, int first, int rows, Team& team);
void pack_blocks(const PackedWeight& weight, const BlockRows& source, int first, int rows, Team& team);

}  // namespace octavo
