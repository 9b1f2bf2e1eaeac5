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
// was never written, NaN included, does no harm. (AMX takes 16 rows together: there what a row may not see meets a 0, and where that
// could be no number the rows are computed one by one. The inner loops are in attention_tiles.h and attention_tiles_amx.h.)
//
// Few tasks and long contexts (single streams): the chunks are handed out one by one, their partials kept in the team's shared scratch,
// and merged in the same order after a barrier.
#include <type_traits>

#include "attention_call.h"
#include "attention_tiles.h"
#include "attention_tiles_amx.h"

namespace octavo {

#if !defined(__AVX2__) && !defined(__AVX512F__)  // once, in the object that every build has
size_t attention_scratch_bytes(int heads, int kv_heads, int head_dim) { return scratch_layout(heads / kv_heads, head_dim).bytes; }
#endif

namespace OCTAVO_ISA {
namespace {

// ---- chunks ------------------------------------------------------------------------------------------------------------------------

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
