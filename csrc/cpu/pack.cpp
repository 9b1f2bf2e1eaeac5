#include "pack.h"

#include <cstring>

#include "team.h"

namespace octavo {

namespace {

// Rounds to nearest even; NaN stays NaN.
uint16_t to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t((bits >> 16) | 0x40);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

constexpr int LANES_OF_TABLE = PANEL / 2;

template <class Source>
struct Job {
    const PackedWeight* weight;
    const Source* source;
    int first, rows;
};

void pack_dense_row(const PackedWeight& w, const DenseRows& source, int row, int column) {
    uint8_t* panel = w.data + size_t(column / PANEL) * w.panel_bytes;
    const int lane = column % PANEL;
    const uint8_t* values = source.data + row * source.row_stride;
    for (int k = 0; k < w.k; k++) {
        if (w.format == Format::BF16) {
            uint16_t value;
            if (source.bf16) {
                std::memcpy(&value, values + 2 * k, 2);
            } else {
                float wide;
                std::memcpy(&wide, values + 4 * k, 4);
                value = to_bf16(wide);
            }
            std::memcpy(panel + (size_t(k / 2) * PANEL + size_t(lane)) * 4 + size_t(k % 2) * 2, &value, 2);
        } else {
            uint32_t value;
            if (source.bf16) {
                uint16_t narrow;
                std::memcpy(&narrow, values + 2 * k, 2);
                value = uint32_t(narrow) << 16;
            } else {
                std::memcpy(&value, values + 4 * k, 4);
            }
            std::memcpy(panel + (size_t(k) * PANEL + size_t(lane)) * 4, &value, 4);
        }
    }
}

// The 32 bytes of a block as a byte format stores them.
void unpack_block(const BlockRows& source, const uint8_t* block, uint8_t* out) {
    if (source.bits == 4) {
        for (int i = 0; i < BLOCK / 2; i++) {
            out[i] = block[i] & 15;
            out[i + BLOCK / 2] = block[i] >> 4;
        }
    } else {
        const uint8_t flip = source.is_signed ? 0x80 : 0;
        for (int i = 0; i < BLOCK; i++) out[i] = block[i] ^ flip;
    }
}

void pack_block_row(const PackedWeight& w, const BlockRows& source, int row, int column) {
    uint8_t* panel = w.data + size_t(column / PANEL) * w.panel_bytes;
    const int lane = column % PANEL;
    const size_t stride = block_bytes(w.format);
    if (is_by_row(w.format)) {
        std::memcpy(panel + lane * 4, source.scales + row * source.scale_row, 4);
        panel += header_bytes(w.format);
    }
    for (int b = 0; b < w.blocks(); b++, panel += stride) {
        uint8_t* values = panel;
        if (!is_by_row(w.format)) {
            std::memcpy(panel + lane * 2, source.scales + row * source.scale_row + b * source.scale_block, 2);
            if (has_minimum(w.format)) {
                std::memcpy(panel + PANEL * 2 + lane * 2, source.minima + row * source.minimum_row + b * source.minimum_block, 2);
            }
            values += header_bytes(w.format);
        }
        const uint8_t* stored = source.values + row * source.value_row + b * source.value_block;
        uint8_t block[BLOCK];
        if (is_four_bit(w.format)) std::memcpy(block, stored, BLOCK / 2);
        else unpack_block(source, stored, block);
        const int words = is_four_bit(w.format) ? BLOCK / 8 : BLOCK / 4;
        for (int j = 0; j < words; j++) std::memcpy(values + (j * PANEL + lane) * 4, block + 4 * j, 4);
    }
}

// Rows whose columns share the words of a table: up to four neighbours of one half.
void pack_table_rows(const PackedWeight& w, const BlockRows& source, int row, int column, int count) {
    const int lane = column % LANES_OF_TABLE, line = lane / 4, shift = lane % 4;
    uint8_t* part = w.data + size_t(column / PANEL) * w.panel_bytes + table_part(w.format, column % PANEL / LANES_OF_TABLE);
    for (int b = 0; b < w.blocks(); b++, part += block_bytes(w.format)) {
        uint16_t* words = reinterpret_cast<uint16_t*>(part + table_values(w.format)) + line * BLOCK;
        for (int i = 0; i < count; i++) {
            const int64_t r = row + i;
            std::memcpy(part + (lane + i) * 2, source.scales + r * source.scale_row + b * source.scale_block, 2);
            if (has_minimum(w.format)) {
                std::memcpy(part + (LANES_OF_TABLE + lane + i) * 2, source.minima + r * source.minimum_row + b * source.minimum_block, 2);
            }
            const uint8_t* stored = source.values + r * source.value_row + b * source.value_block;
            const int at = 4 * (shift + i);
            for (int k = 0; k < BLOCK / 2; k++) words[k] = uint16_t(words[k] | (stored[k] & 15) << at);
            for (int k = 0; k < BLOCK / 2; k++) words[k + BLOCK / 2] = uint16_t(words[k + BLOCK / 2] | (stored[k] >> 4) << at);
        }
    }
}

// A word belongs to one thread: panels are dealt out in turn.
void pack_table_share(void* argument, Worker& worker) {
    const Job<BlockRows>& job = *static_cast<const Job<BlockRows>*>(argument);
    const PackedWeight& w = *job.weight;
    for (int row = 0, count; row < job.rows; row += count) {
        const int column = w.column_of(job.first + row);
        count = 1;
        while (count < 4 - column % 4 && row + count < job.rows && w.column_of(job.first + row + count) == column + count) count++;
        if (column / PANEL % worker.count == worker.id) pack_table_rows(w, *job.source, row, column, count);
    }
}

// Threads take runs of 64 rows: whole cache lines of the panels they write.
template <class Source, void (*pack_row)(const PackedWeight&, const Source&, int, int)>
void pack_share(void* argument, Worker& worker) {
    const Job<Source>& job = *static_cast<const Job<Source>*>(argument);
    const int runs = (job.rows + 63) / 64;
    const Span mine = share_of(runs, worker.id, worker.count);
    for (int row = mine.first * 64; row < mine.last * 64 && row < job.rows; row++) {
        pack_row(*job.weight, *job.source, row, job.weight->column_of(job.first + row));
    }
}

}  // namespace

void pack_dense(const PackedWeight& weight, const DenseRows& source, int first, int rows, Team& team) {
    Job<DenseRows> job{&weight, &source, first, rows};
    team.run(pack_share<DenseRows, pack_dense_row>, &job);
}

void pack_blocks(const PackedWeight& weight, const BlockRows& source, int first, int rows, Team& team) {
    Job<BlockRows> job{&weight, &source, first, rows};
    team.run(is_table(weight.format) ? pack_table_share : pack_share<BlockRows, pack_block_row>, &job);
}

}  // namespace octavo
