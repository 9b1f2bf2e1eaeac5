// Causal attention over the paged cache.
//
//   for each task (sequence, key/value head, block of query tokens)      handed out one by one
//       queries of the whole group to the cache's type, once             rows: token-major, [token][head of the group]
//       for each chunk of 256 positions, at multiples of 256             in order
//           for each 1 .. MAX_ROWS rows
//               scores        [rows][256]    tiles of 16 positions x rows in registers, over the head's dimensions
//               probabilities [rows][256]    2^(score - the chunk's maximum), in the scores' place
//               partial       [rows][dim]    tiles of 16 dimensions x rows in registers, over the positions in order
//               merge into the rows' maximum, sum and output
//       output / sum
//
// Both products use the cache's blocks as packed weights: one 64-byte load serves all rows, whose words of 4 bytes are broadcast:
//
//             16 positions (keys) or dimensions (values)
//           +----+----+-- --+----+
//   step 0  |    |    |     |    |    64 bytes: 16 x one float32, a pair of bf16, or (keys) four int8.
//   step 1  |    |    |     |    |    A step of the values is one position (F32) or a pair (BF16); INT8 values are unpacked to BF16
//    ...                              chunk by chunk, exactly. INT8 keys meet queries of 16 bits, as high and low bytes, exactly too.
//
// A row's bits depend on its own query, keys and values alone. Chunks and tiles lie at absolute positions; each number is summed in an
// order of its own, whatever rows are computed beside it; and a row never multiplies what it may not see: of the last tile the scores
// past the end are dropped, of the values only the row's own steps are taken, half a pair by masking its other half. So memory that
// was never written, NaN included, does no harm.
//
// Few tasks and long contexts (single streams): the chunks are handed out one by one, their partials kept in the team's shared scratch,
// and merged in the same order after a barrier.
#include <type_traits>

#include "amx.h"
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

#if !defined(__AVX2__) && !defined(__AVX512F__)  // once, in the object that every build has
size_t attention_scratch_bytes(int heads, int kv_heads, int head_dim) { return scratch_layout(heads / kv_heads, head_dim).bytes; }
#endif

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

OCTAVO_INLINE Partial from_row(const Call& call, const Partial& partial, int row) {
    return {partial.outputs + int64_t(row) * call.padded_dim, partial.maxima + row, partial.sums + row};
}

OCTAVO_INLINE void copy_row(const Call& call, const Partial& from, const Partial& to) {
    std::memcpy(to.outputs, from.outputs, size_t(call.padded_dim) * 4);
    *to.maxima = *from.maxima, *to.sums = *from.sums;
}

#if defined(OCTAVO_AMX)

// ---- AMX ---------------------------------------------------------------------------------------------------------------------------

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

#endif

// ---- chunks ------------------------------------------------------------------------------------------------------------------------

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

// One row's next chunk, in their order. The larger maximum's side is multiplied by 1, an empty state (zeros at -inf) counts for nothing.
void merge_row(const Call& call, const Partial& state, const Partial& chunk) {
    const float old_maximum = *state.maxima, maximum = *chunk.maxima;
    const bool grows = maximum > old_maximum;
    const F32 less = exp2_of_nonpositive(set1(grows ? old_maximum - maximum : maximum - old_maximum)), one = set1(1.0f);
    const F32 old_factor = grows ? less : one, factor = grows ? one : less;
    *state.maxima = grows ? maximum : old_maximum;
    store(state.sums, fma(set1(*chunk.sums), factor, set1(*state.sums) * old_factor), 1);
    for (int d = 0; d < call.padded_dim; d += LANES)
        store(state.outputs + d, fma(load(chunk.outputs + d), factor, load(state.outputs + d) * old_factor));
}

// A chunk of a task: merged into the state, or kept in `record`, which has a place for each of the task's rows. `go_on` with the next one,
// or `then` with another task, if not null.
template <class Cache>
void attend_chunk(const Call& call, const Task& task, int chunk, bool go_on, const Task* then, const Partial* record) {
    const Range rows = rows_of(call, task, chunk);
    const Range early = visible(call, task.position + rows.from / call.group, chunk);
    const Range late = visible(call, task.position + (rows.to - 1) / call.group, chunk);
    const Range range{early.from / LANES, (late.to + LANES - 1) / LANES};
    Tiles tiles;
    find_tiles(call, task, chunk, range, go_on, then, tiles);
    if constexpr (Cache::INT8) unpack_values(call, range, tiles);
#if defined(OCTAVO_AMX)
    if constexpr (std::is_same_v<Cache, BFloat16Cache>) {
        for (int row = rows.from, count; fits_tiles(call) && row < rows.to; row += count) {
            count = smaller(rows.to - row, TILE_ROWS);
            if (!attend_by_tiles(call, task, chunk, tiles, row, count)) attend_by_tiles(call, task, chunk, tiles, row, count = 1);
            for (int r = 0; r < count; r++) {
                const Partial result = from_row(call, call.partial, r);
                if (record) copy_row(call, result, from_row(call, *record, row + r));
                else merge_row(call, from_row(call, call.state, row + r), result);
            }
        }
        if (fits_tiles(call)) return;
    }
#endif
    for (int row = rows.from; row < rows.to;) {
        const int left = rows.to - row, blocks = (left + MAX_ROWS - 1) / MAX_ROWS, count = (left + blocks - 1) / blocks;
        attend_some_rows<Cache>(call, task, chunk, tiles, row, count, record ? from_row(call, *record, row) : call.partial);
        if (!record)
            for (int r = 0; r < count; r++) merge_row(call, from_row(call, call.state, row + r), from_row(call, call.partial, r));
        row += count;
    }
}

void clear_state(const Call& call, int rows) {
    for (int i = 0; i < rows * call.padded_dim; i += LANES) store(call.state.outputs + i, zero());
    for (int r = 0; r < rows; r++) call.state.maxima[r] = MINUS_INFINITY, call.state.sums[r] = 0;
}

void write_row(const Call& call, const Task& task, int row, const Partial& state) {
    const int64_t head = int64_t(task.kv_head) * call.group + row % call.group;
    float* output = call.op.output + (task.row + row / call.group) * call.op.output_stride + head * call.head_dim;
    for (int d = 0; d < call.head_dim; d += LANES) store(output + d, load(state.outputs + d) / set1(*state.sums), lanes_from(d, call.head_dim));
}

// ---- tasks -------------------------------------------------------------------------------------------------------------------------

// The tasks in the order they are handed out: by sequence and head, late query blocks, which see most, first. Asked for rising numbers.
struct Tasks {
    const Call& call;
    int block_tokens;
    int sequence = 0, before = 0;  // tasks of earlier sequences

    Tasks(const Call& c, int threads) : call(c) {
        const int most = larger(TASK_ROWS / c.group, 1), fair = int(int64_t(c.step.tokens) * c.op.cache.kv_heads / (4 * threads));
        block_tokens = larger(smaller(fair, most), 1);
    }
    int blocks(int s) const { return (call.step.query_starts[s + 1] - call.step.query_starts[s] + block_tokens - 1) / block_tokens; }
    int count() const {
        int total = 0;
        for (int s = 0; s < call.step.sequences; s++) total += blocks(s) * call.op.cache.kv_heads;
        return total;
    }
    bool find(int number, Task& task) {
        for (; sequence < call.step.sequences; sequence++) {
            const int here = blocks(sequence), first_row = call.step.query_starts[sequence], end_row = call.step.query_starts[sequence + 1];
            if (number - before < here * call.op.cache.kv_heads) {
                const int first = (here - 1 - (number - before) % here) * block_tokens;
                task.sequence = sequence;
                task.kv_head = (number - before) / here;
                task.row = first_row + first;
                task.tokens = smaller(block_tokens, end_row - first_row - first);
                task.position = call.step.context_lens[sequence] - (end_row - first_row) + first;
                return true;
            }
            before += here * call.op.cache.kv_heads;
        }
        return false;
    }
};

template <class Cache>
void attend_whole_tasks(const Call& call, Worker& worker) {
    Tasks tasks(call, worker.count);
    const bool take_ahead = tasks.count() >= MANY_TASKS * worker.count;
    const auto take = [&](Task& task) { return tasks.find(worker.next_task->fetch_add(1, std::memory_order_relaxed), task); };
    Task task, then;
    for (bool more = take(task), first = true; more; first = false) {
        const bool known = take_ahead && take(then);
        const Range chunks = chunks_of(call, task);
        const int rows = task.tokens * call.group;
        if (first || !take_ahead) prefetch_first_keys(call, task, chunks.from);
        convert_queries<Cache>(call, task);
        clear_state(call, rows);
        for (int chunk = chunks.from; chunk < chunks.to; chunk++)
            attend_chunk<Cache>(call, task, chunk, chunk + 1 < chunks.to, known ? &then : nullptr, nullptr);
        for (int r = 0; r < rows; r++) write_row(call, task, r, from_row(call, call.state, r));
        more = take_ahead ? known : take(task);
        if (known) task = then;
    }
}

// The chunks of all tasks as parts of their own, numbered task by task, and where their results lie in the shared scratch.
struct Parts {
    const Call& call;
    Tasks tasks;
    Task task;
    Range chunks;
    int number = -1, first_part = 0;  // of the task
    float* records;                   // the task's

    Parts(const Call& c, const Worker& worker) : call(c), tasks(c, worker.count), records(reinterpret_cast<float*>(worker.shared)) {}
    int64_t record_floats() const { return int64_t(task.tokens) * call.group * (call.padded_dim + 2); }
    Partial record(int chunk) const {
        float* outputs = records + (chunk - chunks.from) * record_floats();
        float* maxima = outputs + int64_t(task.tokens) * call.group * call.padded_dim;
        return {outputs, maxima, maxima + int64_t(task.tokens) * call.group};
    }
    bool next_task() {
        if (number >= 0) {
            records += (chunks.to - chunks.from) * record_floats();
            first_part += chunks.to - chunks.from;
        }
        if (!tasks.find(++number, task)) return false;
        chunks = chunks_of(call, task);
        return true;
    }
};

// Whether to hand out chunks instead of tasks: there are few tasks, some of several chunks, and the records fit. The same on all threads.
bool should_split(const Call& call, const Worker& worker) {
    const Tasks tasks(call, worker.count);
    const int count = worker.count > 1 && worker.shared ? tasks.count() : 0;
    if (count == 0 || count >= 4 * worker.count) return false;
    Parts parts(call, worker);
    int64_t floats = 0;
    bool several = false;
    while (parts.next_task()) {
        floats += (parts.chunks.to - parts.chunks.from) * parts.record_floats();
        several = several || parts.chunks.to - parts.chunks.from > 1;
    }
    return several && floats * 4 <= int64_t(worker.shared_bytes);
}

template <class Cache>
void attend_parts(const Call& call, Worker& worker) {
    Parts parts(call, worker);
    int converted = -1;
    for (bool more = parts.next_task(); more;) {
        const int part = worker.next_task->fetch_add(1, std::memory_order_relaxed);
        while (more && part - parts.first_part >= parts.chunks.to - parts.chunks.from) more = parts.next_task();
        if (!more) break;
        const int chunk = parts.chunks.from + part - parts.first_part;
        prefetch_first_keys(call, parts.task, chunk);
        if (converted != parts.number) convert_queries<Cache>(call, parts.task);
        converted = parts.number;
        const Partial record = parts.record(chunk);
        attend_chunk<Cache>(call, parts.task, chunk, false, nullptr, &record);
    }
}

// Merge the parts' results, rows shared out among the threads.
void merge_parts(const Call& call, const Worker& worker) {
    const Span share = share_of(call.step.tokens * call.op.heads, worker.id, worker.count);
    Parts parts(call, worker);
    for (int before = 0; before < share.last && parts.next_task();) {
        const int rows = parts.task.tokens * call.group;
        for (int row = larger(share.first - before, 0); row < smaller(share.last - before, rows); row++) {
            clear_state(call, 1);
            for (int chunk = parts.chunks.from; chunk < parts.chunks.to; chunk++) {
                const Range seeing = rows_of(call, parts.task, chunk);
                if (row >= seeing.from && row < seeing.to) merge_row(call, call.state, from_row(call, parts.record(chunk), row));
            }
            write_row(call, parts.task, row, call.state);
        }
        before += rows;
    }
}

template <class Cache>
void attend(const Call& call, Worker& worker) {
    if (!should_split(call, worker)) return attend_whole_tasks<Cache>(call, worker);
    attend_parts<Cache>(call, worker);
    worker.barrier();
    merge_parts(call, worker);
}

}  // namespace

void attention(const AttentionOp& op, const Step& step, Worker& worker) {
    const Call call = prepare_call(op, step, worker.scratch);
#if defined(OCTAVO_AMX)
    const TilesInUse tiles(tile_shapes());
#endif
    switch (op.cache.type) {
        case CacheType::F32: return attend<FloatCache>(call, worker);
        case CacheType::BF16: return attend<BFloat16Cache>(call, worker);
        case CacheType::INT8: return attend<Int8Cache>(call, worker);
    }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
