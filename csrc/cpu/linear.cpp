// Products of activation rows with packed weights: y [t, n] = x [t, k] W^T, and what comes right after.
//
//   every row of x -> operand (operand.h)             rows shared among threads, or by each for itself where they are few
//   for task: a chunk of rows, a run of panels        a thread takes one after the other and streams its weights once
//     for group of panels                             as many as stay in the level-2 cache; the next group is fetched meanwhile
//       for tile of rows                              stays in the level-1 cache
//         for panel of 32 columns
//           the tile's kernel (linear_tiles.h, linear_tiles_amx.h)
//           scale, bias, softcap or gate; store or add
//
// A row's bits depend on nothing but itself: a kernel sums each number in one order, whatever the rows beside it, and nothing of a row's
// sum is shared out among threads.
#include <utility>

#include "activation.h"
#include "kernels.h"
#include "linear_tiles.h"
#include "linear_tiles_amx.h"
#include "operand.h"
#include "simd.h"
#include "team.h"

namespace octavo::OCTAVO_ISA {

namespace {

// Up to here each thread converts all rows for itself: less work than waiting for each other.
constexpr int OWN_OPERAND_ROWS = 2;
static_assert(OWN_OPERAND_ROWS <= GROUP_ROWS);
// Rows of operands that stay in the level-2 cache while panels go by: so many, or where that cache is large (as beside every AMX) what
// fits ROW_CHUNK_BYTES, up to MOST_ROW_CHUNK. What is done once for each panel and chunk, unpacking above all, then counts for less.
constexpr int ROW_CHUNK = 192, MOST_ROW_CHUNK = 512;
constexpr size_t ROW_CHUNK_BYTES = 1024 * 1024;
// Panels up to this size are fetched to the level-1 cache, where the one in use and the rows are.
constexpr size_t NEAR_BYTES = 16 * 1024;
// Into how many runs the panels are cut for each thread.
constexpr int RUNS = 6;

// ---- which kernel ----------------------------------------------------------------------------------------------------------------------

using TileKernel = void (*)(const Tile&, Prefetcher&, float (*)[PANEL]);

template <Format F, int R>
constexpr TileKernel tile_kernel() {
    if constexpr (F == Format::F32) return tile_f32<R>;
    else if constexpr (F == Format::BF16) return tile_bf16<R>;
    else return tile_bytes<F, R>;
}

template <Format F, int... I>
TileKernel kernel_for(int rows, std::integer_sequence<int, I...>) {
    static constexpr TileKernel kernels[] = {tile_kernel<F, I + 1>()...};
    return kernels[rows - 1];
}

template <Format F>
TileKernel kernel_for(int rows, [[maybe_unused]] bool unpacked) {
#if defined(OCTAVO_AMX)
    if constexpr (is_table(F)) {
        constexpr bool MIN = has_minimum(F);
        if (unpacked) return rows > TILE_ROWS ? amx_tile_table<true, false, MIN> : amx_tile_table<false, false, MIN>;
        return rows > TILE_ROWS ? amx_tile_table<true, true, MIN> : amx_tile_table<false, true, MIN>;
    } else if constexpr (is_wide(F)) return amx_tile_wide;
    else if constexpr (F == Format::BF16) return rows > TILE_ROWS ? amx_tile_bf16<true> : amx_tile_bf16<false>;
    else if constexpr (F != Format::F32)
        if (rows >= AMX_BYTE_ROWS) return amx_tile_bytes<F>;
#endif
    return kernel_for<F>(rows, std::make_integer_sequence<int, is_dense(F) ? DENSE_TILE : BYTE_TILE>());
}

TileKernel kernel_of(Format format, int rows, bool unpacked) {
    switch (format) {
        case Format::F32: return kernel_for<Format::F32>(rows, unpacked);
        case Format::BF16: return kernel_for<Format::BF16>(rows, unpacked);
        case Format::U8_ROW: return kernel_for<Format::U8_ROW>(rows, unpacked);
        case Format::U8_BLOCK: return kernel_for<Format::U8_BLOCK>(rows, unpacked);
        case Format::U8_BLOCK_MIN: return kernel_for<Format::U8_BLOCK_MIN>(rows, unpacked);
        case Format::U4_BLOCK: return kernel_for<Format::U4_BLOCK>(rows, unpacked);
#if defined(OCTAVO_AMX)
        case Format::U8_WIDE: return kernel_for<Format::U8_WIDE>(rows, unpacked);
        case Format::U4_TABLE: return kernel_for<Format::U4_TABLE>(rows, unpacked);
        case Format::U4_TABLE_MIN: return kernel_for<Format::U4_TABLE_MIN>(rows, unpacked);
#endif
        default: return kernel_for<Format::U4_BLOCK_MIN>(rows, unpacked);
    }
}

#if defined(OCTAVO_AMX)
constexpr int MOST_ROWS = 2 * TILE_ROWS;  // of a tile
bool uses_amx(Format format, int rows) {
    return format == Format::BF16 || needs_amx(format) || (format != Format::F32 && rows >= AMX_BYTE_ROWS);
}
int row_chunk(Format format, int k) {
    const int fit = int(ROW_CHUNK_BYTES / (operand_group_bytes(format, k) / GROUP_ROWS)) / MOST_ROWS * MOST_ROWS;
    return fit < ROW_CHUNK ? ROW_CHUNK : fit > MOST_ROW_CHUNK ? MOST_ROW_CHUNK : fit;
}
#else
constexpr int MOST_ROWS = DENSE_TILE;
bool uses_amx(Format, int) { return false; }
int row_chunk(Format, int) { return ROW_CHUNK; }
#endif

// Cut rows into tiles: whole units first, each into tiles as equal as can be. Calls what(first row, height) for each.
template <class What>
OCTAVO_INLINE void for_tiles(Format format, Span rows, const What& what) {
    const int unit = is_wide(format) ? GROUP_ROWS : uses_amx(format, 1) ? MOST_ROWS : is_dense(format) ? MOST_ROW_CHUNK : GROUP_ROWS;
    for (int first = rows.first; first < rows.last; first += unit) {
        const int count = first + unit < rows.last ? unit : rows.last - first;
        const int most = uses_amx(format, count) ? unit : is_dense(format) ? DENSE_TILE : BYTE_TILE;
        const int tiles = (count + most - 1) / most;
        for (int i = 0; i < tiles; i++) {
            const Span share = share_of(count, i, tiles);
            what(first + share.first, share.last - share.first);
        }
    }
}

// ---- after the product -----------------------------------------------------------------------------------------------------------------

OCTAVO_INLINE void put(const LinearOp& op, float* to, F32 value, int n) {
    if (op.softcap > 0) value = set1(op.softcap) * tanh(value / set1(op.softcap));
    if (n >= LANES) store(to, op.add ? load(to) + value : value);
    else store(to, op.add ? load(to, n) + value : value, n);
}

// Sums of one panel's columns and some rows, to their output.
void finish(const LinearOp& op, int panel, float (*sums)[PANEL], int first, int rows) {
    const PackedWeight& weight = *op.weight;
    if (weight.bias) {
        const F32 bias0 = load(weight.bias + panel * PANEL), bias1 = load(weight.bias + panel * PANEL + LANES);
        for (int r = 0; r < rows; r++) {
            store(sums[r], load(sums[r]) + bias0);
            store(sums[r] + LANES, load(sums[r] + LANES) + bias1);
        }
    }
    const int column = panel * (weight.paired ? LANES : PANEL), left = weight.outputs() - column;
    const bool whole = left >= (weight.paired ? LANES : PANEL) && op.softcap <= 0;
    float* to = op.output + first * op.output_stride + column;
    const auto each = [&](const auto& what) __attribute__((always_inline)) {
        for (int r = 0; r < rows; r++, to += op.output_stride) what(load(sums[r]), load(sums[r] + LANES));
    };
    if (weight.paired && whole && op.activation == Activation::SILU && !op.add) {
        each([&](F32 gate, F32 up) __attribute__((always_inline)) { store(to, silu(gate) * up); });
    } else if (weight.paired) {
        each([&](F32 gate, F32 up) __attribute__((always_inline)) { put(op, to, activate(op.activation, gate) * up, left); });
    } else if (whole && op.add) {
        each([&](F32 a, F32 b) __attribute__((always_inline)) { store(to, load(to) + a), store(to + LANES, load(to + LANES) + b); });
    } else if (whole) {
        each([&](F32 a, F32 b) __attribute__((always_inline)) { store(to, a), store(to + LANES, b); });
    } else {
        each([&](F32 a, F32 b) __attribute__((always_inline)) {
            put(op, to, a, left);
            if (left > LANES) put(op, to + LANES, b, left - LANES);
        });
    }
}

// ---- the loops -------------------------------------------------------------------------------------------------------------------------

// How often a tile's kernel asks the prefetcher for its next lines.
int prefetch_steps(const PackedWeight& weight) {
    if (weight.format == Format::F32) return (weight.k + PREFETCH_EVERY - 1) / PREFETCH_EVERY;
    if (weight.format == Format::BF16 && !uses_amx(Format::BF16, 1)) return ((weight.k + 1) / 2 + PREFETCH_EVERY - 1) / PREFETCH_EVERY;
    return is_wide(weight.format) ? (weight.k + 63) / 64 : weight.blocks();
}

// A call of `linear` on one thread.
struct Product {
    const LinearOp& op;
    const PackedWeight& weight;
    const uint8_t* operand;
    uint8_t* unpacked;

    const uint8_t* panel(int i) const { return weight.data + size_t(i) * weight.panel_bytes; }
    // Whether four-bit values are unpacked before the tiles' kernels run: not where a kernel that does it itself runs once.
    bool unpacks(int rows) const {
        return is_table(weight.format) ? rows > MOST_ROWS : is_four_bit(weight.format) && uses_amx(weight.format, rows);
    }
    // Panels that rows go through together: of one tile of rows, each by itself.
    int group_panels(Span rows) const {
        int tiles = 0;
        for_tiles(weight.format, rows, [&](int, int) { tiles++; });
        const size_t bytes = unpacks(rows.last - rows.first) ? unpacked_panel_bytes(weight.format, weight.k) : weight.panel_bytes;
        return tiles == 1 || bytes > UNPACKED_BYTES ? 1 : int(UNPACKED_BYTES / bytes);
    }
    void compute(Span rows, Span panels, Span coming) const;
};

// Rows times a group of panels, while those that come next are fetched.
void Product::compute(Span rows, Span panels, Span coming) const {
    const size_t group_bytes = operand_group_bytes(weight.format, weight.k);
    const size_t row_bytes = is_dense(weight.format) ? operand_row_bytes(weight.format, weight.k) : 0;
    const size_t panel_space = unpacks(rows.last - rows.first) ? unpacked_panel_bytes(weight.format, weight.k) : 0;
#if defined(OCTAVO_AMX)
    for (int p = panels.first; panel_space && p < panels.last; p++) {
        if (is_table(weight.format)) expand_panel(weight, panel(p), unpacked + (p - panels.first) * panel_space);
        else unpack_panel(weight, panel(p), unpacked + (p - panels.first) * panel_space);
    }
#endif
    int calls = 0;
    for_tiles(weight.format, rows, [&](int, int) { calls += panels.last - panels.first; });
    const int lines = int((size_t(coming.last - coming.first) * weight.panel_bytes + 63) / 64), steps = calls * prefetch_steps(weight);
    Prefetcher next{panel(coming.first), panel(coming.last), (lines + steps - 1) / steps, calls == 1 && weight.panel_bytes <= NEAR_BYTES};
    alignas(64) float sums[MOST_ROWS][PANEL];
    for_tiles(weight.format, rows, [&](int first, int height) {
        const int in_group = first % GROUP_ROWS;
        const uint8_t* group = operand + size_t(first / GROUP_ROWS) * group_bytes;
        const TileKernel kernel = kernel_of(weight.format, height, panel_space > 0);
        for (int p = panels.first; p < panels.last; p++) {
            const uint8_t* bytes = unpacked + (p - panels.first) * panel_space;
            kernel({group + in_group * row_bytes, in_group, height, row_bytes, panel(p), bytes, weight.k, weight.zero}, next, sums);
            finish(op, p, sums, first, height);
        }
    });
}

// This thread's share of the rows, or all of them, to the operand.
void prepare_rows(const LinearOp& op, int tokens, bool all, uint8_t* operand, const Worker& worker) {
    const PackedWeight& weight = *op.weight;
    const int together = rows_together(weight.format), parts = (tokens + together - 1) / together;
    const Span mine = all ? Span{0, parts} : share_of(parts, worker.id, worker.count);
    const int end = mine.last * together < tokens ? mine.last * together : tokens;
    float* spare = reinterpret_cast<float*>(worker.scratch + spare_offset(weight.format, weight.k));
    for (int t = mine.first * together; t < end; t++) {
        uint8_t* group = operand + size_t(t / GROUP_ROWS) * operand_group_bytes(weight.format, weight.k);
        prepare_row(op.input + t * op.input_stride, weight.k, op.norm, weight, spare, group, t % GROUP_ROWS);
    }
}

}  // namespace

void linear(const LinearOp& op, const Step& step, Worker& worker) {
    const PackedWeight& weight = *op.weight;
#if defined(OCTAVO_AMX)
    const TilesInUse tiles(tile_shapes(weight.format));
#endif
    const bool own = step.tokens <= OWN_OPERAND_ROWS;
    uint8_t* operand = own ? worker.scratch : worker.shared;
    const Product product{op, weight, operand, worker.scratch + unpacked_offset(weight.format, weight.k)};

    // Few rows are over before a thread could help another. For more, runs of panels go to whoever is free: where something else
    // takes a core for a while, the other threads do not wait for its share.
    const int chunk = row_chunk(weight.format, weight.k);
    const int runs = own ? worker.count : weight.panels < RUNS * worker.count ? weight.panels : RUNS * worker.count;
    const int tasks = own ? runs : (step.tokens + chunk - 1) / chunk * runs;
    const auto rows_of = [&](int task) {
        const int first = task / runs * chunk;
        return Span{first, first + chunk < step.tokens ? first + chunk : step.tokens};
    };
    const auto run_of = [&](int task) { return share_of(weight.panels, task % runs, runs); };

    // The first task is known before the rows are ready, and the next one before a task ends: so weights are fetched in time.
    const auto take = [&] { return own ? tasks : worker.count + worker.next_task->fetch_add(1, std::memory_order_relaxed); };
    int task = worker.id;
    if (task < tasks) {
        const uint8_t* first = product.panel(run_of(task).first);
        for (size_t byte = 0; byte < weight.panel_bytes && byte < NEAR_BYTES; byte += 64) __builtin_prefetch(first + byte, 0, 2);
    }
    prepare_rows(op, step.tokens, own, operand, worker);
    if (!own) worker.barrier();

    for (int then; task < tasks; task = then) {
        then = take();
        const Span rows = rows_of(task), run = run_of(task);
        const int many = product.group_panels(rows);
        const auto group_of = [&](Span from) { return Span{from.first, from.first + many < from.last ? from.first + many : from.last}; };
        for (int first = run.first; first < run.last; first += many) {
            const Span group = group_of({first, run.last});
            const bool last = group.last == run.last, changes = then < tasks && then % runs != task % runs;
            product.compute(rows, group, !last ? group_of({group.last, run.last}) : changes ? group_of(run_of(then)) : Span{0, 0});
        }
    }
}

}  // namespace octavo::OCTAVO_ISA
