// Attention's inner loops by AMX (amx.h): up to 16 rows of a task and one chunk of 256 positions of a bf16 cache.
#pragma once

#include "amx.h"
#include "attention_tiles.h"

#if defined(OCTAVO_AMX)

namespace octavo::OCTAVO_ISA {
namespace {

// Both products of up to 16 rows with a BF16 cache whose heads have whole tiles of dimensions. Sums in tiles 0 to 3; queries in 4 and keys
// in 5 for 32 dimensions at once; the same in 6 and 7 for the last 16, and probabilities and values of 16 positions.
OCTAVO_INLINE bool fits_tiles(const Call& call) { return call.head_dim % LANES == 0; }

TileShapes tile_shapes() {
    TileShapes shapes;
    for (int i = 0; i < 8; i++) shapes.rows[i] = i == 7 ? TILE_ROWS / 2 : TILE_ROWS, shapes.row_bytes[i] = i == 6 ? TILE_BYTES / 2 : TILE_BYTES;
    return shapes;
}

// T tiles of keys times 16 rows.
template <int T>
void score_by_tiles(const Call& call, const uint8_t* const* keys, const uint8_t* queries, float* scores) {
    const size_t stride = size_t(call.query_bytes);
    clear_tile<0>(), clear_tile<1>(), clear_tile<2>(), clear_tile<3>();
    int k = 0;
    for (; k + TILE_ROWS <= call.key_steps; k += TILE_ROWS) {
        const int line = k * LINE;
        load_tile<4>(queries + k * 4, stride);
        load_tile<5>(keys[0] + line, LINE), add_bf16_products<0, 4, 5>();
        if constexpr (T > 1) load_tile<5>(keys[1] + line, LINE), add_bf16_products<1, 4, 5>();
        if constexpr (T > 2) load_tile<5>(keys[2] + line, LINE), add_bf16_products<2, 4, 5>();
        if constexpr (T > 3) load_tile<5>(keys[3] + line, LINE), add_bf16_products<3, 4, 5>();
        for (int t = 0; t < T; t++)
            for (int i = 0; i < TILE_ROWS; i++) __builtin_prefetch(keys[t + AHEAD] + line + i * LINE);
    }
    if (k < call.key_steps) {
        const int line = k * LINE;
        load_tile<6>(queries + k * 4, stride);
        load_tile<7>(keys[0] + line, LINE), add_bf16_products<0, 6, 7>();
        if constexpr (T > 1) load_tile<7>(keys[1] + line, LINE), add_bf16_products<1, 6, 7>();
        if constexpr (T > 2) load_tile<7>(keys[2] + line, LINE), add_bf16_products<2, 6, 7>();
        if constexpr (T > 3) load_tile<7>(keys[3] + line, LINE), add_bf16_products<3, 6, 7>();
    }
    store_tile<0>(scores, CHUNK * 4);
    if constexpr (T > 1) store_tile<1>(scores + LANES, CHUNK * 4);
    if constexpr (T > 2) store_tile<2>(scores + 2 * LANES, CHUNK * 4);
    if constexpr (T > 3) store_tile<3>(scores + 3 * LANES, CHUNK * 4);
}

// Tiles of values, C x 16 dimensions from `dimension` on, times 16 rows of probabilities.
template <int C>
void add_values_by_tiles(const Call& call, const uint8_t* const* values, Range range, int dimension, float* outputs) {
    const size_t stride = size_t(call.head_dim) * 4;
    const uint8_t* probabilities = reinterpret_cast<const uint8_t*>(call.scores);
    clear_tile<0>(), clear_tile<1>(), clear_tile<2>(), clear_tile<3>();
    for (int t = range.from; t < range.to; t++) {
        const uint8_t* w = values[t] + dimension * 4;
        load_tile<6>(probabilities + t * LANES * 2, CHUNK * 4);
        load_tile<7>(w, stride), add_bf16_products<0, 6, 7>();
        if constexpr (C > 1) load_tile<7>(w + LINE, stride), add_bf16_products<1, 6, 7>();
        if constexpr (C > 2) load_tile<7>(w + 2 * LINE, stride), add_bf16_products<2, 6, 7>();
        if constexpr (C > 3) load_tile<7>(w + 3 * LINE, stride), add_bf16_products<3, 6, 7>();
        for (int i = 0; i < TILE_ROWS / 2 * C; i++) __builtin_prefetch(values[t + AHEAD] + dimension * 4 + i / C * int(stride) + i % C * LINE);
    }
    const size_t row = size_t(call.padded_dim) * 4;
    store_tile<0>(outputs + dimension, row);
    if constexpr (C > 1) store_tile<1>(outputs + dimension + LANES, row);
    if constexpr (C > 2) store_tile<2>(outputs + dimension + 2 * LANES, row);
    if constexpr (C > 3) store_tile<3>(outputs + dimension + 3 * LANES, row);
}

// A copy of a tile of values that not all rows see whole: zeros where none looks. False: some rows see what is no number and others must not.
bool copy_edge(const Call& call, const uint8_t* values, int start, Range all, Range common, uint8_t* copy) {
    const int step_bytes = call.head_dim * 4;
    F32 poison = zero();
    for (int step = 0; step < LANES / 2; step++) {
        int32_t mask = 0, partly = 0;
        for (int i = 0; i < 2; i++) {
            const int position = start + step * 2 + i, half = i ? int32_t(0xffff0000) : 0xffff;
            const bool some = position >= all.from && position < all.to, every = position >= common.from && position < common.to;
            mask |= some ? half : 0;
            partly |= some && !every ? half : 0;
        }
        for (int byte = step * step_bytes; byte < (step + 1) * step_bytes; byte += LINE) {
            const I32 pair = iload(values + byte) & iset1(mask), shared = pair & iset1(partly);
            istore(copy + byte, pair);
            if (partly) poison = fma(bits_to_f32(shared & iset1(int32_t(0xffff0000))), zero(), fma(bits_to_f32(shift_left<16>(shared)), zero(), poison));
        }
    }
    return reduce_add(poison) == 0.0f;
}

// Rows first_row .. first_row + rows - 1 of a task, each of which sees some of the chunk; to call.partial. False: they cannot be computed
// together, since what is no number would get from one to another as 0 times itself.
bool attend_by_tiles(const Call& call, const Task& task, int chunk, const Tiles& tiles, int first_row, int rows) {
    Range seen[TILE_ROWS], all{CHUNK, 0}, common{0, CHUNK};  // positions: of any row, of all
    for (int r = 0; r < rows; r++) {
        seen[r] = visible(call, task.position + (first_row + r) / call.group, chunk);
        all = {smaller(all.from, seen[r].from), larger(all.to, seen[r].to)};
        common = {larger(common.from, seen[r].from), smaller(common.to, seen[r].to)};
    }
    const Range range{all.from / LANES, (all.to + LANES - 1) / LANES};
    Tiles edged = tiles;
    uint8_t* copy = call.values;
    for (int t = range.from; t < range.to; t++) {
        if (t * LANES >= common.from && (t + 1) * LANES <= common.to) continue;
        if (!copy_edge(call, tiles.values[t], t * LANES, all, common, copy)) return false;
        edged.values[t] = copy;
        copy += call.value_tile_bytes;
    }

    const uint8_t* queries = call.queries + int64_t(first_row) * call.query_bytes;
    int t = range.from;
    for (; t + 4 <= range.to; t += 4) score_by_tiles<4>(call, tiles.keys + t, queries, call.scores + t * LANES);
    if (t + 2 <= range.to) score_by_tiles<2>(call, tiles.keys + t, queries, call.scores + t * LANES), t += 2;
    if (t < range.to) score_by_tiles<1>(call, tiles.keys + t, queries, call.scores + t * LANES);

    for (int r = 0; r < rows; r++) {
        float* scores = call.scores + r * CHUNK;
        exponentiate<BFloat16Cache>(call, tiles, seen[r], scores, call.partial.maxima + r, call.partial.sums + r);
        for (int i = range.from; i < seen[r].from / LANES; i++) BFloat16Cache::store_row(scores, i * LANES, zero());
        for (int i = (seen[r].to + LANES - 1) / LANES; i < range.to; i++) BFloat16Cache::store_row(scores, i * LANES, zero());
    }

    int d = 0;
    for (; d + 4 * LANES <= call.head_dim; d += 4 * LANES) add_values_by_tiles<4>(call, edged.values, range, d, call.partial.outputs);
    if (d + 2 * LANES <= call.head_dim) add_values_by_tiles<2>(call, edged.values, range, d, call.partial.outputs), d += 2 * LANES;
    if (d < call.head_dim) add_values_by_tiles<1>(call, edged.values, range, d, call.partial.outputs);
    return true;
}

}  // namespace
}  // namespace octavo::OCTAVO_ISA

#endif
