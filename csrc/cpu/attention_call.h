// What attention's kernels share: where a thread's scratch lies, what is fixed for an operation, a task and a chunk, how the cache's blocks
// are walked through, and queries in the cache's type. attention.cpp draws the whole.
#pragma once

#include "ops.h"
#include "simd.h"

namespace octavo {
namespace {

constexpr int CHUNK = 256;
constexpr int MOST_ROWS = 16;  // computed at once, on any instruction set
constexpr int TASK_ROWS = 96;  // of a task, where the group is not larger
constexpr size_t QUERY_INFO_BYTES = 16;

// Offsets of the parts of a thread's scratch.
struct ScratchLayout {
    size_t queries, query_infos, outputs, maxima, sums, scores, partial_outputs, partial_maxima, partial_sums, values, bytes;
};

static inline __attribute__((always_inline)) ScratchLayout scratch_layout(int group, int head_dim) {
    const size_t rows = size_t(group > TASK_ROWS ? group : TASK_ROWS), row_bytes = size_t(head_dim + 15) / 16 * 64;
    ScratchLayout at{};
    size_t end = 0;
    const auto take = [&end](size_t bytes) __attribute__((always_inline)) {
        const size_t start = end;
        end += (bytes + 63) / 64 * 64;
        return start;
    };
    at.queries = take((rows + MOST_ROWS) * row_bytes);
    at.query_infos = take(rows * QUERY_INFO_BYTES);
    at.outputs = take(rows * row_bytes);
    at.maxima = take(rows * 4);
    at.sums = take(rows * 4);
    at.scores = take(size_t(MOST_ROWS) * CHUNK * 4);
    at.partial_outputs = take(MOST_ROWS * row_bytes);
    at.partial_maxima = take(MOST_ROWS * 4);
    at.partial_sums = take(MOST_ROWS * 4);
    at.values = take(CHUNK * size_t(head_dim) * 2 + 64);
    at.bytes = end;
    return at;
}

}  // namespace

namespace OCTAVO_ISA {
namespace {

constexpr int TILES = CHUNK / LANES;
constexpr int AHEAD = 4;  // tiles between the one computed and the one prefetched
constexpr int LINE = 64;
constexpr int MANY_TASKS = 16;  // for each thread: so many that one may be taken before the last is done, to fetch its keys
constexpr float MINUS_INFINITY = -__builtin_inff();

// Registers that hold sums, in vectors of 16 lanes, and rows computed at once.
constexpr int ACCUMULATORS = REGISTERS >= 32 ? 24 : REGISTERS >= 8 ? 4 : 1, MAX_ROWS = REGISTERS >= 32 ? 6 : REGISTERS >= 8 ? 4 : 1;
static_assert(MAX_ROWS <= MOST_ROWS);

constexpr int tiles_at_once(int accumulators_per_tile) {
    const int fit = ACCUMULATORS / accumulators_per_tile;
    return fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
}

template <int N>
struct Count {
    static constexpr int value = N;
};

// ---- arithmetic --------------------------------------------------------------------------------------------------------------------

// 2^x for x <= 0, at least 2^-125; 2^0 is 1, NaN stays NaN. Relative error about 1.5e-7.
OCTAVO_INLINE F32 exp2_of_nonpositive(F32 x) {
    x = max(set1(-125.0f), x);
    const F32 n = round_even(x), r = x - n;
    F32 p = set1(1.326472731307149e-3f);
    p = fma(p, r, set1(9.671512991189957e-3f));
    p = fma(p, r, set1(5.550733581185341e-2f));
    p = fma(p, r, set1(2.4022242426872253e-1f));
    p = fma(p, r, set1(6.931470036506653e-1f));
    p = fma(p, r, set1(1.0f));
    return scale_by_power(p, n);
}

struct Range {
    int from, to;
};

OCTAVO_INLINE constexpr int smaller(int a, int b) { return a < b ? a : b; }
OCTAVO_INLINE int larger(int a, int b) { return a > b ? a : b; }
OCTAVO_INLINE int lanes_from(int i, int n) { return smaller(n - i, LANES); }

// Lanes [range.from, range.to) of a tile that starts at `start`; b elsewhere.
OCTAVO_INLINE F32 lanes_in(Range range, int start, F32 a, F32 b) {
    const int from = larger(range.from - start, 0), to = smaller(range.to - start, LANES);
    return first_lanes(from, b, first_lanes(to, a, b));
}

// ---- cache types -------------------------------------------------------------------------------------------------------------------

struct FloatCache {
    static constexpr bool INT8 = false;
    static constexpr int STEP_SLOTS = 1;  // positions in a step of the values
    OCTAVO_INLINE F32 dot(F32 acc, I32 w, int32_t word) {
        float x;
        std::memcpy(&x, &word, 4);
        return fma(bits_to_f32(w), set1(x), acc);
    }
    OCTAVO_INLINE void store_row(void* row, int i, F32 x) { store(static_cast<float*>(row) + i, x); }
};

struct BFloat16Cache {
    static constexpr bool INT8 = false;
    static constexpr int STEP_SLOTS = 2;
    OCTAVO_INLINE F32 dot(F32 acc, I32 w, int32_t word) { return dot_bf16(acc, w, word); }
    OCTAVO_INLINE void store_row(void* row, int i, F32 x) { store_bf16(static_cast<uint16_t*>(row) + i, x); }
};

struct Int8Cache : BFloat16Cache {
    static constexpr bool INT8 = true;
};

// ---- what is fixed for an operation, a task, a chunk -------------------------------------------------------------------------------

struct QueryInfo {  // of an INT8 query row: its unit, and 128 times the sums of its high and low bytes
    float unit;
    int32_t high, low, unused;
};
static_assert(sizeof(QueryInfo) == QUERY_INFO_BYTES);

struct Partial {  // a chunk's result for some rows: outputs not yet divided by the sums, relative to 2^maximum
    float* outputs;
    float* maxima;
    float* sums;
};

struct Call {
    const AttentionOp& op;
    const Step& step;
    int group, head_dim, padded_dim;
    int key_steps;                         // lines in a tile of keys
    int key_tile_bytes, value_tile_bytes;  // in the cache
    float factor;                          // on query-key products
    float cap;                             // > 0: the score is cap * tanh of that

    // This thread's scratch.
    uint8_t* queries;  // rows of query_bytes
    int query_bytes;
    QueryInfo* query_infos;
    Partial state;    // of all chunks so far, for the task's rows
    float* scores;    // [MAX_ROWS][CHUNK]
    Partial partial;  // of MAX_ROWS rows
    uint8_t* values;  // a chunk of INT8 values, unpacked
};

struct Task {
    int sequence, kv_head;
    int row, tokens;  // the first token's row in the step
    int position;     // and its position
};

struct Tiles {  // of a chunk. Past the last one: what will be read next, to prefetch
    const uint8_t* keys[TILES + AHEAD];
    const uint8_t* values[TILES + AHEAD];
    const uint8_t* unpacked[TILES + AHEAD];  // INT8's values
    const float* key_scales[TILES];
    const float* value_scales[TILES];
};

constexpr float LOG2_E = 1.44269504088896341f;

Call prepare_call(const AttentionOp& op, const Step& step, uint8_t* scratch) {
    const LayerCache& cache = op.cache;
    const int dim = cache.head_dim, group = op.heads / cache.kv_heads, padded = (dim + LANES - 1) / LANES * LANES;
    const ScratchLayout at = scratch_layout(group, dim);
    const auto floats = [scratch](size_t offset) { return reinterpret_cast<float*>(scratch + offset); };
    Call call{op, step, group, dim, padded, 0, 0, 0, 0, 0, scratch + at.queries, padded * 4, reinterpret_cast<QueryInfo*>(scratch + at.query_infos),
              {floats(at.outputs), floats(at.maxima), floats(at.sums)}, floats(at.scores),
              {floats(at.partial_outputs), floats(at.partial_maxima), floats(at.partial_sums)}, scratch + at.values};
    const int value_bytes = cache.type == CacheType::F32 ? 4 : cache.type == CacheType::BF16 ? 2 : 1;
    call.key_steps = (dim * value_bytes + 3) / 4;
    call.key_tile_bytes = call.key_steps * LINE;
    call.value_tile_bytes = dim * value_bytes * LANES;
    call.cap = op.softcap > 0 ? op.softcap * LOG2_E : 0;
    call.factor = op.softcap > 0 ? op.scale / op.softcap : op.scale * LOG2_E;
    return call;
}

// What a token at this position sees of a chunk, relative to its start. Empty where to <= from.
OCTAVO_INLINE Range visible(const Call& call, int position, int chunk) {
    const int start = chunk * CHUNK, window = call.op.window;
    return {window > 0 ? larger(position - window + 1 - start, 0) : 0, smaller(position + 1 - start, CHUNK)};
}

OCTAVO_INLINE Range chunks_of(const Call& call, const Task& task) {
    const int window = call.op.window;
    return {window > 0 ? larger(task.position - window + 1, 0) / CHUNK : 0, (task.position + task.tokens - 1) / CHUNK + 1};
}

// The task's rows that see any of the chunk: early tokens may lie before it, and have it behind a late token's window.
OCTAVO_INLINE Range rows_of(const Call& call, const Task& task, int chunk) {
    const int start = chunk * CHUNK, window = call.op.window;
    const int from = larger(start - task.position, 0);
    const int to = window > 0 ? smaller(start + CHUNK + window - 1 - task.position, task.tokens) : task.tokens;
    return {from * call.group, to * call.group};
}

// ---- the cache's blocks ------------------------------------------------------------------------------------------------------------

struct Walk {  // over the tiles of a sequence's head
    const LayerCache& cache;
    const int32_t* table;
    int head, offset;

    Walk(const Call& call, const Task& task, int position)
        : cache(call.op.cache), table(call.step.block_tables + task.sequence * call.step.table_stride + position / call.op.cache.block_size),
          head(task.kv_head), offset(position % call.op.cache.block_size) {}
    const uint8_t* tile(const uint8_t* pool, int tile_bytes) const {
        return pool + *table * cache.block_stride + (int64_t(head) * (cache.block_size / LANES) + offset / LANES) * tile_bytes;
    }
    void next() {
        offset += LANES;
        if (offset == cache.block_size) offset = 0, table++;
    }
};

int first_tile(const Call& call, const Task& task, int chunk) { return visible(call, task.position, chunk).from / LANES * LANES + chunk * CHUNK; }

// Tiles [range.from, range.to) of a chunk, and the keys that this thread reads next: of the next chunk where it goes on with it, or of
// another task.
void find_tiles(const Call& call, const Task& task, int chunk, Range range, bool go_on, const Task* then, Tiles& tiles) {
    const LayerCache& cache = call.op.cache;
    Walk walk(call, task, chunk * CHUNK + range.from * LANES);
    for (int t = range.from; t < range.to; t++, walk.next()) {
        tiles.keys[t] = walk.tile(cache.keys, call.key_tile_bytes);
        tiles.values[t] = walk.tile(cache.values, call.value_tile_bytes);
        if (cache.type != CacheType::INT8) continue;
        tiles.key_scales[t] = reinterpret_cast<const float*>(walk.tile(cache.key_scales, LANES * 4));
        tiles.value_scales[t] = reinterpret_cast<const float*>(walk.tile(cache.value_scales, LANES * 4));
    }
    const Task& source = !go_on && then ? *then : task;
    const int start = go_on ? (chunk + 1) * CHUNK : then ? first_tile(call, *then, chunks_of(call, *then).from) : 0;
    const int end = go_on || then ? source.position + source.tokens : 0;
    Walk ahead(call, source, start);
    for (int i = 0; i < AHEAD; i++) {
        const bool more = start + i * LANES < end;
        tiles.values[range.to + i] = more ? ahead.tile(cache.keys, call.key_tile_bytes) : tiles.values[range.to - 1];
        if (more) ahead.next();
    }
    for (int i = 0; i < AHEAD; i++) tiles.keys[range.to + i] = tiles.values[range.from + i];
}

void prefetch_first_keys(const Call& call, const Task& task, int chunk) {
    const int first = first_tile(call, task, chunk);
    Walk walk(call, task, first);
    for (int i = 0; i < AHEAD && first + i * LANES < task.position + task.tokens; i++, walk.next()) {
        const uint8_t* tile = walk.tile(call.op.cache.keys, call.key_tile_bytes);
        for (int k = 0; k < call.key_steps; k++) __builtin_prefetch(tile + k * LINE);
    }
}

// INT8 values as pairs of bf16, exactly: whole numbers up to 127 need 7 bits. Their scales go into the probabilities.
void unpack_values(const Call& call, Range range, Tiles& tiles) {
    const int dim = call.head_dim, step_bytes = dim * 4;
    for (int t = range.from; t < range.to; t++) {
        uint8_t* out = call.values + (t - range.from) * (LANES / 2) * step_bytes;
        tiles.unpacked[t] = out;
        for (int pair = 0; pair < LANES / 2; pair++, out += step_bytes) {
            const uint8_t* even = tiles.values[t] + pair * 2 * dim;
            for (int d = 0; d < dim; d += LANES) {
                const I32 low = f32_to_bits(to_f32(load_int8(even + d))), high = f32_to_bits(to_f32(load_int8(even + dim + d)));
                istore(out + d * 4, shift_right<16>(low) + high);
            }
        }
        for (int byte = 0; byte < call.value_tile_bytes; byte += LINE) __builtin_prefetch(tiles.values[t + AHEAD] + byte);
    }
    for (int i = 0; i < AHEAD; i++) tiles.unpacked[range.to + i] = tiles.unpacked[range.to - 1];
}

// ---- queries -----------------------------------------------------------------------------------------------------------------------

// A row as 16-bit whole numbers of a unit: high bytes at row, low bytes at row + 2 * padded_dim, so that 256 high + low is the number.
// A NaN or infinity makes the unit, and so every score, NaN.
void query_to_int8(const Call& call, const float* query, uint8_t* row, QueryInfo& info) {
    F32 largest = zero(), poison = zero();
    for (int d = 0; d < call.head_dim; d += LANES) {
        const F32 x = load(query + d, lanes_from(d, call.head_dim));
        largest = max(largest, abs(x));
        poison = fma(x, zero(), poison);
    }
    const float top = reduce_max(largest);
    const F32 inverse = set1(top > 0 ? 32512.0f / top : 0.0f);
    uint8_t* low_row = row + call.padded_dim * 2;
    I32 high_sum = izero(), low_sum = izero();
    for (int d = 0; d < call.padded_dim; d += LANES) {
        const I32 number = to_i32(load(query + d, lanes_from(d, call.head_dim)) * inverse);
        store_bytes(row + d, shift_right<8>(number + iset1(128)));
        store_bytes(low_row + d, number);
        high_sum = high_sum + load_int8(row + d);
        low_sum = low_sum + load_int8(low_row + d);
    }
    info = {top / 32512.0f + reduce_add(poison), reduce_add(high_sum) * 128, reduce_add(low_sum) * 128, 0};
}

template <class Cache>
void convert_queries(const Call& call, const Task& task) {
    const float* token = call.op.q + task.row * call.op.q_stride + int64_t(task.kv_head) * call.group * call.head_dim;
    int row = 0;
    for (int t = 0; t < task.tokens; t++, token += call.op.q_stride) {
        for (int head = 0; head < call.group; head++, row++) {
            const float* query = token + head * call.head_dim;
            uint8_t* out = call.queries + int64_t(row) * call.query_bytes;
            if constexpr (Cache::INT8) {
                query_to_int8(call, query, out, call.query_infos[row]);
            } else {
                for (int d = 0; d < call.head_dim; d += LANES) Cache::store_row(out, d, load(query + d, lanes_from(d, call.head_dim)));
            }
        }
    }
}

// ---- results -----------------------------------------------------------------------------------------------------------------------

OCTAVO_INLINE Partial from_row(const Call& call, const Partial& partial, int row) {
    return {partial.outputs + int64_t(row) * call.padded_dim, partial.maxima + row, partial.sums + row};
}

OCTAVO_INLINE void copy_row(const Call& call, const Partial& from, const Partial& to) {
    std::memcpy(to.outputs, from.outputs, size_t(call.padded_dim) * 4);
    *to.maxima = *from.maxima, *to.sums = *from.sums;
}

}  // namespace
}  // namespace OCTAVO_ISA
}  // namespace octavo
