// Token rows out of a packed table: a tied model keeps one copy, laid out for the product that scores the vocabulary.
//
// A table may be a rank's share of the vocabulary; tokens that it does not hold are zeros, which the ranks' sum leaves out.
// A token is a column of its panel; each thread takes its share of the tokens and walks down their columns.
#include "kernels.h"
#include "simd.h"

namespace octavo::OCTAVO_ISA {

namespace {

uint16_t half_word(const uint8_t* p) {
    uint16_t value;
    std::memcpy(&value, p, 2);
    return value;
}

float value_at(const uint8_t* p) {
    float value;
    std::memcpy(&value, p, 4);
    return value;
}

void dense_row(const PackedWeight& table, const uint8_t* panel, int lane, float scale, float* out) {
    for (int k = 0; k < table.k; k++) {
        out[k] = table.format == Format::F32 ? value_at(panel + (size_t(k) * PANEL + size_t(lane)) * 4)
                                             : bf16_to_f32(half_word(panel + (size_t(k / 2) * PANEL + size_t(lane)) * 4 + size_t(k % 2) * 2));
        out[k] *= scale;
    }
}

void quantised_row(const PackedWeight& table, const uint8_t* panel, int lane, float scale, float* out) {
    const bool by_row = is_by_row(table.format), four = is_four_bit(table.format);
    const float row_scale = by_row ? value_at(panel + lane * 4) : 0;
    const uint8_t* block = panel + (by_row ? header_bytes(table.format) : 0);
    for (int b = 0; b < table.blocks(); b++, block += block_bytes(table.format)) {
        const float d = by_row ? row_scale : f16_to_f32(half_word(block + lane * 2));
        const float m = has_minimum(table.format) ? f16_to_f32(half_word(block + PANEL * 2 + lane * 2)) : 0.0f;
        const uint8_t* values = block + (by_row ? 0 : header_bytes(table.format));
        for (int i = 0; i < BLOCK && b * BLOCK + i < table.k; i++) {
            const int word = four ? i % (BLOCK / 2) / 4 : i / 4;
            const uint8_t byte = values[(word * PANEL + lane) * 4 + i % 4];
            const int q = four ? (i < BLOCK / 2 ? byte & 15 : byte >> 4) : byte;
            out[b * BLOCK + i] = __builtin_fmaf(d, float(q - table.zero), m) * scale;
        }
    }
}

void table_row(const PackedWeight& table, const uint8_t* panel, int lane, float scale, float* out) {
    const int half = lane / LANES, column = lane % LANES;
    const uint8_t* part = panel + table_part(table.format, half);
    for (int b = 0; b < table.blocks(); b++, part += block_bytes(table.format)) {
        const float d = f16_to_f32(half_word(part + column * 2));
        const float m = has_minimum(table.format) ? f16_to_f32(half_word(part + (LANES + column) * 2)) : 0.0f;
        for (int i = 0; i < BLOCK && b * BLOCK + i < table.k; i++) {
            const int q = half_word(part + table_values(table.format) + (column / 4 * BLOCK + i) * 2) >> (column % 4 * 4) & 15;
            out[b * BLOCK + i] = __builtin_fmaf(d, float(q - table.zero), m) * scale;
        }
    }
}

}  // namespace

void embedding(const EmbeddingOp& op, const Step& step, Worker& worker) {
    const PackedWeight& table = *op.table;
    const Span mine = share_of(step.tokens, worker.id, worker.count);
    for (int t = mine.first; t < mine.last; t++) {
        const int64_t row = step.token_ids[t] - op.first;
        if (row < 0 || row >= table.n) {
            std::memset(op.output + t * op.output_stride, 0, size_t(table.k) * sizeof(float));
            continue;
        }
        const int column = int(row);
        const uint8_t* panel = table.data + size_t(column / PANEL) * table.panel_bytes;
        float* out = op.output + t * op.output_stride;
        if (is_dense(table.format)) dense_row(table, panel, column % PANEL, op.scale, out);
        else if (is_table(table.format)) table_row(table, panel, column % PANEL, op.scale, out);
        else quantised_row(table, panel, column % PANEL, op.scale, out);
    }
}

}  // namespace octavo::OCTAVO_ISA
