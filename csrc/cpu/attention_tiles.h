// Attention's inner loops: up to MAX_ROWS rows of a task and one chunk of 256 positions, in every cache type.
#pragma once

#include "attention_call.h"

namespace octavo::OCTAVO_ISA {
namespace {

// ---- scores ------------------------------------------------------------------------------------------------------------------------

// T tiles of keys times R rows.
template <class Cache, int R, int T>
OCTAVO_INLINE void score_tiles(const Call& call, const uint8_t* const* keys, const uint8_t* queries, float* scores) {
    F32 acc[R][T];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) acc[r][t] = zero();
    for (int k = 0; k < call.key_steps; k++) {
        I32 w[T];
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
            w[t] = iload(keys[t] + k * LINE);
            __builtin_prefetch(keys[t + AHEAD] + k * LINE);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const int32_t word = word_at(queries + r * call.query_bytes + k * 4);
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) acc[r][t] = Cache::dot(acc[r][t], w[t], word);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) store(scores + r * CHUNK + t * LANES, acc[r][t]);
}

// The same for INT8: two exact sums, of the queries' high and low bytes. Keys are stored with 128 added, which the infos take off again.
template <int R, int T>
OCTAVO_INLINE void score_int8_tiles(const Call& call, const uint8_t* const* keys, const float* const* scales, const uint8_t* queries,
                                    const QueryInfo* infos, float* scores) {
    I32 high[R][T], low[R][T];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) high[r][t] = iset1(-infos[r].high), low[r][t] = iset1(-infos[r].low);
    for (int k = 0; k < call.key_steps; k++) {
        I32 w[T];
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
            w[t] = iload(keys[t] + k * LINE);
            __builtin_prefetch(keys[t + AHEAD] + k * LINE);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const uint8_t* row = queries + r * call.query_bytes + k * 4;
            const int32_t high_word = word_at(row), low_word = word_at(row + call.padded_dim * 2);
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) {
                high[r][t] = dot_u8s8(high[r][t], w[t], high_word);
                low[r][t] = dot_u8s8(low[r][t], w[t], low_word);
            }
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
        const F32 scale = load(scales[t]);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const F32 product = fma(to_f32(high[r][t]), set1(256.0f), to_f32(low[r][t]));
            store(scores + r * CHUNK + t * LANES, product * set1(infos[r].unit) * scale);
        }
    }
}

template <class Cache, int R>
void score(const Call& call, const Tiles& tiles, Range range, int first_row) {
    const uint8_t* queries = call.queries + int64_t(first_row) * call.query_bytes;
    const auto some = [&](int t, auto count) __attribute__((always_inline)) {
        if constexpr (Cache::INT8)
            score_int8_tiles<R, count.value>(call, tiles.keys + t, tiles.key_scales + t, queries, call.query_infos + first_row, call.scores + t * LANES);
        else
            score_tiles<Cache, R, count.value>(call, tiles.keys + t, queries, call.scores + t * LANES);
    };
    constexpr int MANY = tiles_at_once(Cache::INT8 ? R * 2 : R);
    int t = range.from;
    for (; t + MANY <= range.to; t += MANY) some(t, Count<MANY>());
    if constexpr (MANY > 2)
        for (; t + 2 <= range.to; t += 2) some(t, Count<2>());
    if constexpr (MANY > 1)
        for (; t < range.to; t++) some(t, Count<1>());
}

// ---- probabilities -----------------------------------------------------------------------------------------------------------------

// A row's scores to probabilities, packed as the steps of the values want them, over the tiles that the row sees; their maximum and sum.
template <class Cache>
OCTAVO_INLINE void exponentiate(const Call& call, const Tiles& tiles, Range seen, float* scores, float* maximum, float* sum) {
    const int first = seen.from / LANES, last = (seen.to + LANES - 1) / LANES;
    const auto cut = [&](int t) { return t * LANES < seen.from || (t + 1) * LANES > seen.to; };
    F32 top = set1(MINUS_INFINITY), factor = set1(call.factor);
    if (call.cap > 0) {
        for (int t = first; t < last; t++) store(scores + t * LANES, tanh(load(scores + t * LANES) * factor) * set1(call.cap));
        factor = set1(1.0f);
    }
    for (int t = first; t < last; t++) {
        F32 s = load(scores + t * LANES) * factor;
        if (cut(t)) s = lanes_in(seen, t * LANES, s, set1(MINUS_INFINITY));
        top = max(top, s);
    }
    *maximum = reduce_max(top);
    F32 total = zero();
    for (int t = first; t < last; t++) {
        F32 p = exp2_of_nonpositive(load(scores + t * LANES) * factor - set1(*maximum));
        if (cut(t)) p = lanes_in(seen, t * LANES, p, zero());
        total = total + p;
        if constexpr (Cache::INT8) {
            p = p * load(tiles.value_scales[t]);
            if (cut(t)) p = lanes_in(seen, t * LANES, p, zero());
        }
        Cache::store_row(scores, t * LANES, p);  // never past what has been read
    }
    *sum = reduce_add(total);
}

// ---- outputs -----------------------------------------------------------------------------------------------------------------------

// Steps [steps.from, steps.to) of a chunk's values, T x 16 dimensions, times R rows of probabilities, added to the outputs.
template <class Cache, int R, int T>
OCTAVO_INLINE void add_values(const Call& call, const uint8_t* const* values, int column_bytes, Range steps, const float* probabilities,
                              float* outputs) {
    constexpr int TILE_STEPS = LANES / Cache::STEP_SLOTS;
    const int step_bytes = call.head_dim * 4;
    F32 acc[R][T];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) acc[r][t] = load(outputs + r * call.padded_dim + t * LANES);
    for (int tile = steps.from / TILE_STEPS; tile * TILE_STEPS < steps.to; tile++) {
        const int first = larger(steps.from - tile * TILE_STEPS, 0), last = smaller(steps.to - tile * TILE_STEPS, TILE_STEPS);
        for (int step = first; step < last; step++) {
            const int64_t offset = step * step_bytes + column_bytes;
            I32 w[T];
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) {
                w[t] = iload(values[tile] + offset + t * LINE);
                __builtin_prefetch(values[tile + AHEAD] + offset + t * LINE);
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const int32_t word = word_at(probabilities + r * CHUNK + tile * TILE_STEPS + step);
#pragma GCC unroll 8
                for (int t = 0; t < T; t++) acc[r][t] = Cache::dot(acc[r][t], w[t], word);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) store(outputs + r * call.padded_dim + t * LANES, acc[r][t]);
}

template <class Cache, int R>
void add_common_values(const Call& call, const uint8_t* const* values, Range steps, float* outputs) {
    const auto some = [&](int d, auto count) __attribute__((always_inline)) {
        add_values<Cache, R, count.value>(call, values, d * 4, steps, call.scores, outputs + d);
    };
    constexpr int MANY = tiles_at_once(R);
    int d = 0;
    for (; d + MANY * LANES <= call.padded_dim; d += MANY * LANES) some(d, Count<MANY>());
    if constexpr (MANY > 2)
        for (; d + 2 * LANES <= call.padded_dim; d += 2 * LANES) some(d, Count<2>());
    if constexpr (MANY > 1)
        for (; d < call.padded_dim; d += LANES) some(d, Count<1>());
}

// The few steps that one row sees and others do not, or sees half of.
template <class Cache>
void add_edge_values(const Call& call, const uint8_t* const* values, Range seen, Range steps, const float* probabilities, float* outputs) {
    constexpr int TILE_STEPS = LANES / Cache::STEP_SLOTS;
    for (int step = steps.from; step < steps.to; step++) {
        int32_t mask = -1;
        if (Cache::STEP_SLOTS == 2 && step * 2 < seen.from) mask = int32_t(0xffff0000);
        if (Cache::STEP_SLOTS == 2 && step * 2 + 1 >= seen.to) mask &= 0xffff;
        const uint8_t* line = values[step / TILE_STEPS] + step % TILE_STEPS * call.head_dim * 4;
        const int32_t word = word_at(probabilities + step);
        for (int d = 0; d < call.padded_dim; d += LANES)
            store(outputs + d, Cache::dot(load(outputs + d), iload(line + d * 4) & iset1(mask), word));
    }
}

// ---- rows --------------------------------------------------------------------------------------------------------------------------

// Rows first_row .. first_row + R - 1 of a task, each of which sees some of the chunk.
template <class Cache, int R>
void attend_rows(const Call& call, const Task& task, int chunk, const Tiles& tiles, int first_row, const Partial& result) {
    constexpr int SLOTS = Cache::STEP_SLOTS;
    Range seen[R], all{CHUNK, 0}, common{0, CHUNK / SLOTS};  // positions; of any row; steps of all rows, wholly
    for (int r = 0; r < R; r++) {
        seen[r] = visible(call, task.position + (first_row + r) / call.group, chunk);
        all = {smaller(all.from, seen[r].from), larger(all.to, seen[r].to)};
        common = {larger(common.from, (seen[r].from + SLOTS - 1) / SLOTS), smaller(common.to, seen[r].to / SLOTS)};
    }
    if (common.from >= common.to) common = {CHUNK / SLOTS, CHUNK / SLOTS};

    score<Cache, R>(call, tiles, {all.from / LANES, (all.to + LANES - 1) / LANES}, first_row);
    for (int r = 0; r < R; r++) exponentiate<Cache>(call, tiles, seen[r], call.scores + r * CHUNK, result.maxima + r, result.sums + r);

    for (int i = 0; i < R * call.padded_dim; i += LANES) store(result.outputs + i, zero());
    const uint8_t* const* values = Cache::INT8 ? tiles.unpacked : tiles.values;
    const auto edge = [&](int r, Range steps) {
        add_edge_values<Cache>(call, values, seen[r], steps, call.scores + r * CHUNK, result.outputs + r * call.padded_dim);
    };
    for (int r = 0; r < R; r++) edge(r, {seen[r].from / SLOTS, smaller((seen[r].to + SLOTS - 1) / SLOTS, common.from)});
    add_common_values<Cache, R>(call, values, common, result.outputs);
    for (int r = 0; r < R; r++) edge(r, {larger(seen[r].from / SLOTS, common.to), (seen[r].to + SLOTS - 1) / SLOTS});
}

template <class Cache>
void attend_some_rows(const Call& call, const Task& task, int chunk, const Tiles& tiles, int first_row, int rows, const Partial& result) {
    const auto some = [&](auto count) { attend_rows<Cache, smaller(count.value, MAX_ROWS)>(call, task, chunk, tiles, first_row, result); };
    switch (rows) {
        case 1: return some(Count<1>());
        case 2: return some(Count<2>());
        case 3: return some(Count<3>());
        case 4: return some(Count<4>());
        case 5: return some(Count<5>());
        default: return some(Count<MAX_ROWS>());
    }
}

}  // namespace
}  // namespace octavo::OCTAVO_ISA
