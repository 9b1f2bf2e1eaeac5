// Products of activation rows with packed weights: y [t, n] = x [t, k] W^T, and what comes right after.
//
//   every row of x -> operand (operand.h)             rows shared among threads, or by each for itself where they are few
//   for panel of 32 columns                           a thread takes a run of panels and streams it once
//     for tile of rows (12 or 6 with AVX-512)         the panel now lies in the cache
//       for k                                         in order, one accumulator for each row and column
//         weights of 32 columns x 1, 2 or 4 k in two vectors
//         for row: broadcast the row's k, multiply, add to two accumulators
//       epilogue: scale, bias, softcap or gate; store or add
//
// A row's sums run over k in one order in one accumulator for each column, whatever the number of rows, the tile's height or the
// threads: a row's bits depend on nothing but itself. While one panel is computed the next is fetched from memory.
//
// Quantised weights keep their sums as integers within a block of 32 k (exact), then times both scales into float32. The instruction
// set's speed is in dot_u8s8 and dot_bf16 (simd.h); on the scalar one the same loops are the fall-back.
#include <utility>

#include "activation.h"
#include "amx.h"
#include "kernels.h"
#include "operand.h"
#include "simd.h"
#include "team.h"

namespace octavo::OCTAVO_ISA {

namespace {

// Up to here each thread converts all rows for itself: less work than waiting for each other.
constexpr int OWN_OPERAND_ROWS = 2;
static_assert(OWN_OPERAND_ROWS <= OPERAND_ROWS);
// Rows of operands that stay in the level-2 cache while panels go by.
constexpr int ROW_CHUNK = 192;
// Into how many runs the panels are cut for each thread.
constexpr int RUNS = 6;
// Rows of a tile: two accumulators each, and for bytes two sums too, in what registers there are.
constexpr int DENSE_TILE = REGISTERS >= 32 ? 12 : REGISTERS >= 8 ? 3 : 1;
constexpr int BYTE_TILE = REGISTERS >= 32 ? 6 : REGISTERS >= 8 ? 2 : 1;

// Fetches the next panel a few lines at a time.
struct Prefetcher {
    const uint8_t* at;
    const uint8_t* end;
    int lines;  // in each step

    __attribute__((always_inline)) void step() {
        for (int i = 0; i < lines && at < end; i++, at += 64) __builtin_prefetch(at, 0, 3);
    }
};

constexpr int PREFETCH_EVERY = 8;  // vectors' worth of k of a dense weight between two steps

// Some rows of the operand and one panel. Kernels copy what they use of it: they cannot know that nothing changes it.
struct Tile {
    const uint8_t* rows;
    int height;  // rows
    size_t row_bytes;
    const uint8_t* panel;
    const uint8_t* unpacked;  // its four-bit values as bytes, for the kernels of AMX
    int k;
};

template <int R>
OCTAVO_INLINE void store_sums(F32 (*acc)[2], float (*out)[PANEL]) {
    OCTAVO_UNROLL for (int r = 0; r < R; r++) {
        store(out[r], acc[r][0]);
        store(out[r] + LANES, acc[r][1]);
    }
}

// ---- dense: accumulators only --------------------------------------------------------------------------------------------------------

template <int R>
void tile_bf16(const Tile& tile, Prefetcher& prefetcher, float (*out)[PANEL]) {
    Prefetcher next = prefetcher;
    const size_t row_bytes = tile.row_bytes;
    F32 acc[R][2];
    OCTAVO_UNROLL for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = zero();
    const uint8_t* w = tile.panel;
    const uint8_t* x = tile.rows;
    const uint8_t* end = x + size_t(tile.k + 1) / 2 * 4;
    while (x < end) {
        next.step();
        const uint8_t* stop = end - x > 4 * PREFETCH_EVERY ? x + 4 * PREFETCH_EVERY : end;
        for (; x < stop; x += 4, w += PANEL * 4) {
            const I32 w0 = iload(w), w1 = iload(w + 64);
            OCTAVO_UNROLL for (int r = 0; r < R; r++) {
                const int32_t pair = word_at(x + r * row_bytes);
                acc[r][0] = dot_bf16(acc[r][0], w0, pair);
                acc[r][1] = dot_bf16(acc[r][1], w1, pair);
            }
        }
    }
    prefetcher = next;
    store_sums<R>(acc, out);
}

template <int R>
void tile_f32(const Tile& tile, Prefetcher& prefetcher, float (*out)[PANEL]) {
    Prefetcher next = prefetcher;
    const size_t stride = tile.row_bytes / 4;
    F32 acc[R][2];
    OCTAVO_UNROLL for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = zero();
    const float* w = reinterpret_cast<const float*>(tile.panel);
    const float* x = reinterpret_cast<const float*>(tile.rows);
    const float* end = x + tile.k;
    while (x < end) {
        next.step();
        const float* stop = end - x > PREFETCH_EVERY ? x + PREFETCH_EVERY : end;
        for (; x < stop; x++, w += PANEL) {
            const F32 w0 = load(w), w1 = load(w + LANES);
            OCTAVO_UNROLL for (int r = 0; r < R; r++) {
                const F32 value = set1(x[r * stride]);
                acc[r][0] = fma(w0, value, acc[r][0]);
                acc[r][1] = fma(w1, value, acc[r][1]);
            }
        }
    }
    prefetcher = next;
    store_sums<R>(acc, out);
}

// ---- quantised: integers in a block, float32 across blocks -----------------------------------------------------------------------------

// Adds the products of a block's weights with R rows' bytes from x on.
template <Format F, int R>
OCTAVO_INLINE void dot_block(const uint8_t* values, const uint8_t* x, size_t row_bytes, I32 (*acc)[2]) {
    if constexpr (is_four_bit(F)) {
        const I32 nibble = iset1(0x0f0f0f0f);
        OCTAVO_UNROLL for (int j = 0; j < BLOCK / 8; j++) {
            const I32 w0 = iload(values + j * PANEL * 4), w1 = iload(values + j * PANEL * 4 + 64);
            const I32 low0 = w0 & nibble, low1 = w1 & nibble;
            OCTAVO_UNROLL for (int r = 0; r < R; r++) {
                const int32_t a = word_at(x + r * row_bytes + 4 * j);
                acc[r][0] = dot_u8s8(acc[r][0], low0, a);
                acc[r][1] = dot_u8s8(acc[r][1], low1, a);
            }
            const I32 high0 = shift_right<4>(w0) & nibble, high1 = shift_right<4>(w1) & nibble;
            OCTAVO_UNROLL for (int r = 0; r < R; r++) {
                const int32_t a = word_at(x + r * row_bytes + BLOCK / 2 + 4 * j);
                acc[r][0] = dot_u8s8(acc[r][0], high0, a);
                acc[r][1] = dot_u8s8(acc[r][1], high1, a);
            }
        }
    } else {
        OCTAVO_UNROLL for (int j = 0; j < BLOCK / 4; j++) {
            const I32 w0 = iload(values + j * PANEL * 4), w1 = iload(values + j * PANEL * 4 + 64);
            OCTAVO_UNROLL for (int r = 0; r < R; r++) {
                const int32_t a = word_at(x + r * row_bytes + 4 * j);
                acc[r][0] = dot_u8s8(acc[r][0], w0, a);
                acc[r][1] = dot_u8s8(acc[r][1], w1, a);
            }
        }
    }
}

// A wide block's second half: 256 times the sums so far, plus the products with the low bytes. Out of line, so that the registers of
// the common case are its own.
template <Format F, int R>
__attribute__((noinline)) void widen_block(const uint8_t* values, const uint8_t* low, const uint8_t* terms, size_t row_bytes, int32_t* sums) {
    I32 acc[R][2];
    OCTAVO_UNROLL for (int r = 0; r < R; r++) {
        const I32 start = has_minimum(F) ? izero() : iset1(reinterpret_cast<const BlockTerms*>(terms + r * row_bytes)->low_start);
        OCTAVO_UNROLL for (int i = 0; i < 2; i++) acc[r][i] = shift_left<8>(iload(sums + (2 * r + i) * LANES)) + start;
    }
    dot_block<F, R>(values, low, row_bytes, acc);
    OCTAVO_UNROLL for (int r = 0; r < R; r++) {
        OCTAVO_UNROLL for (int i = 0; i < 2; i++) istore(sums + (2 * r + i) * LANES, acc[r][i]);
    }
}

template <Format F, int R>
void tile_bytes(const Tile& tile, Prefetcher& prefetcher, float (*out)[PANEL]) {
    Prefetcher next = prefetcher;
    const int blocks = (tile.k + BLOCK - 1) / BLOCK;
    const size_t row_bytes = tile.row_bytes;
    const uint8_t* x = tile.rows;
    const uint8_t* terms = x + terms_offset(blocks);
    const uint8_t* flags = x + wide_offset(blocks);
    uint32_t wide = 0;  // the next blocks, lowest bit first: which are wide in any of the rows
    F32 sum[R][2];
    OCTAVO_UNROLL for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = zero();
    constexpr bool by_row = F == Format::U8_ROW;
    const uint8_t* w = tile.panel + (by_row ? header_bytes(F) : 0);
    for (int b = 0; b < blocks; b++) {
        const uint8_t* values = w + (by_row ? 0 : header_bytes(F));
        next.step();
        if (b % 32 == 0) {
            wide = 0;
            OCTAVO_UNROLL for (int r = 0; r < R; r++) wide |= uint32_t(word_at(flags + r * row_bytes));
            flags += 4;
        }
        const auto term = [&](int r) __attribute__((always_inline)) { return reinterpret_cast<const BlockTerms*>(terms + r * row_bytes); };
        I32 acc[R][2];
        OCTAVO_UNROLL for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = has_minimum(F) ? izero() : iset1(term(r)->high_start);
        dot_block<F, R>(values, x, row_bytes, acc);
        F32 unit = set1(1.0f);
        if (__builtin_expect(wide >> (b % 32) & 1, 0)) {
            alignas(64) int32_t sums[R * 2 * LANES];
            OCTAVO_UNROLL for (int r = 0; r < R; r++) istore(sums + 2 * r * LANES, acc[r][0]), istore(sums + (2 * r + 1) * LANES, acc[r][1]);
            widen_block<F, R>(values, x + low_offset(blocks), terms, row_bytes, sums);
            OCTAVO_UNROLL for (int r = 0; r < R; r++) acc[r][0] = iload(sums + 2 * r * LANES), acc[r][1] = iload(sums + (2 * r + 1) * LANES);
            unit = set1(0.00390625f);  // 1 / 256
        }
        if constexpr (by_row) {
            OCTAVO_UNROLL for (int r = 0; r < R; r++) {
                const F32 scale = set1(term(r)->scale) * unit;
                sum[r][0] = fma(to_f32(acc[r][0]), scale, sum[r][0]);
                sum[r][1] = fma(to_f32(acc[r][1]), scale, sum[r][1]);
            }
        } else {
            const F32 d0 = load_f16(w) * unit, d1 = load_f16(w + 32) * unit;
            OCTAVO_UNROLL for (int r = 0; r < R; r++) {
                const F32 scale = set1(term(r)->scale);
                sum[r][0] = fma(to_f32(acc[r][0]), d0 * scale, sum[r][0]);
                sum[r][1] = fma(to_f32(acc[r][1]), d1 * scale, sum[r][1]);
            }
        }
        if constexpr (has_minimum(F)) {
            const F32 m0 = load_f16(w + 64), m1 = load_f16(w + 96);
            OCTAVO_UNROLL for (int r = 0; r < R; r++) {
                const F32 block_sum = set1(term(r)->sum);
                sum[r][0] = fma(m0, block_sum, sum[r][0]);
                sum[r][1] = fma(m1, block_sum, sum[r][1]);
            }
        }
        w += block_bytes(F);
        x += BLOCK;
        terms += sizeof(BlockTerms);
    }
    if constexpr (by_row) {
        const F32 d0 = load(reinterpret_cast<const float*>(tile.panel)), d1 = load(reinterpret_cast<const float*>(tile.panel) + LANES);
        OCTAVO_UNROLL for (int r = 0; r < R; r++) {
            sum[r][0] = sum[r][0] * d0;
            sum[r][1] = sum[r][1] * d1;
        }
    }
    prefetcher = next;
    store_sums<R>(sum, out);
}

#if defined(OCTAVO_AMX)

// ---- AMX -------------------------------------------------------------------------------------------------------------------------------

// Sums in tiles 0 to 3, rows in 4 and 5, weights in 6 and 7.
TileShapes tile_shapes(Format format) {
    TileShapes shapes;
    const int k_bytes = format == Format::BF16 ? TILE_BYTES : BLOCK;
    for (int i = 0; i < 8; i++) {
        shapes.rows[i] = i < 6 ? TILE_ROWS : uint8_t(k_bytes / 4);
        shapes.row_bytes[i] = i == 4 || i == 5 ? uint16_t(k_bytes) : TILE_BYTES;
    }
    return shapes;
}

// Up to 32 rows. TWO: more than 16.
template <bool TWO>
void amx_tile_bf16(const Tile& tile, Prefetcher& prefetcher, float (*out)[PANEL]) {
    Prefetcher next = prefetcher;
    const size_t row_bytes = tile.row_bytes;
    const uint8_t* w = tile.panel;
    const uint8_t* x = tile.rows;
    clear_tile<0>(), clear_tile<1>();
    if constexpr (TWO) clear_tile<2>(), clear_tile<3>();
    for (int k = 0; k < tile.k; k += TILE_BYTES / 2, w += TILE_ROWS * PANEL * 4, x += TILE_BYTES) {
        next.step();
        load_tile<6>(w, PANEL * 4);
        load_tile<4>(x, row_bytes);
        add_bf16_products<0, 4, 6>();
        load_tile<7>(w + TILE_BYTES, PANEL * 4);
        add_bf16_products<1, 4, 7>();
        if constexpr (TWO) {
            load_tile<5>(x + TILE_ROWS * row_bytes, row_bytes);
            add_bf16_products<2, 5, 6>();
            add_bf16_products<3, 5, 7>();
        }
    }
    prefetcher = next;
    store_tile<0>(out, PANEL * 4), store_tile<1>(out[0] + LANES, PANEL * 4);
    if constexpr (TWO) store_tile<2>(out[TILE_ROWS], PANEL * 4), store_tile<3>(out[TILE_ROWS] + LANES, PANEL * 4);
}

// A panel's four-bit values as bytes, [k / 4][32][4].
void unpack_panel(const PackedWeight& weight, const uint8_t* panel, uint8_t* out) {
    const I32 nibble = iset1(0x0f0f0f0f);
    const size_t header = header_bytes(weight.format);
    constexpr int lines = PANEL * BLOCK / 2 / TILE_BYTES;
    for (int b = 0; b < weight.blocks(); b++, panel += block_bytes(weight.format), out += PANEL * BLOCK) {
        OCTAVO_UNROLL for (int i = 0; i < lines; i++) {
            const I32 w = iload(panel + header + i * TILE_BYTES);
            istore(out + i * TILE_BYTES, w & nibble);
            istore(out + (lines + i) * TILE_BYTES, shift_right<4>(w) & nibble);
        }
    }
}

// As tile_bytes, to the bit: the same whole numbers, then the same steps. 16 columns after the other, of 16 rows: so many sums fit the
// registers. A tile's sums reach the registers through memory, so those of a block are made while the one before is scaled and added.
template <Format F>
void amx_tile_bytes(const Tile& tile, Prefetcher& prefetcher, float (*out)[PANEL]) {
    constexpr bool by_row = F == Format::U8_ROW;
    constexpr int R = TILE_ROWS;
    constexpr size_t value_bytes = is_four_bit(F) ? PANEL * BLOCK : block_bytes(F);  // from a block's values to the next one's
    Prefetcher next = prefetcher;
    const int blocks = (tile.k + BLOCK - 1) / BLOCK, height = tile.height;
    const size_t row_bytes = tile.row_bytes;
    alignas(64) int32_t high[2][R][LANES], low[R][LANES];
    for (int half = 0; half < 2; half++) {
        const uint8_t* values = (is_four_bit(F) ? tile.unpacked : tile.panel + header_bytes(F)) + half * TILE_BYTES;
        const uint8_t* terms = tile.rows + terms_offset(blocks);
        const uint8_t* scales = tile.panel + half * LANES * 2;
        const auto multiply = [&](int b) __attribute__((always_inline)) {
            load_tile<4>(tile.rows + b * BLOCK, row_bytes);
            load_tile<6>(values + b * value_bytes, PANEL * 4);
            clear_tile<0>();
            add_byte_products<0, 4, 6>();
            store_tile<0>(high[b % 2], TILE_BYTES);
        };
        uint32_t wide = 0;
        F32 sum[R];
        OCTAVO_UNROLL for (int r = 0; r < R; r++) sum[r] = zero();
        multiply(0);
        for (int b = 0; b < blocks; b++) {
            next.step();
            if (b + 1 < blocks) multiply(b + 1);
            if (b % 32 == 0) {
                wide = 0;
                const uint8_t* flags = tile.rows + wide_offset(blocks) + b / 8;
                for (int r = 0; r < height; r++) wide |= uint32_t(word_at(flags + r * row_bytes));
            }
            const auto term = [&](int r) __attribute__((always_inline)) { return reinterpret_cast<const BlockTerms*>(terms + r * row_bytes); };
            F32 unit = set1(1.0f);
            if (__builtin_expect(wide >> (b % 32) & 1, 0)) {
                load_tile<5>(tile.rows + low_offset(blocks) + b * BLOCK, row_bytes);
                load_tile<7>(values + b * value_bytes, PANEL * 4);
                clear_tile<1>();
                add_byte_products<1, 5, 7>();
                store_tile<1>(low, TILE_BYTES);
                for (int r = 0; r < R; r++) {  // what starts the sums of high bytes is added below, once
                    const I32 start = has_minimum(F) ? izero() : iset1(term(r)->high_start * 255 + term(r)->low_start);
                    istore(high[b % 2][r], shift_left<8>(iload(high[b % 2][r])) + iload(low[r]) + start);
                }
                unit = set1(0.00390625f);  // 1 / 256
            }
            const auto sum_of = [&](int r) __attribute__((always_inline)) {
                const I32 all = iload(high[b % 2][r]);
                return to_f32(has_minimum(F) ? all : all + iset1(term(r)->high_start));
            };
            if constexpr (by_row) {
                OCTAVO_UNROLL for (int r = 0; r < R; r++) sum[r] = fma(sum_of(r), set1(term(r)->scale) * unit, sum[r]);
            } else {
                const F32 d = load_f16(scales) * unit;
                OCTAVO_UNROLL for (int r = 0; r < R; r++) sum[r] = fma(sum_of(r), d * set1(term(r)->scale), sum[r]);
            }
            if constexpr (has_minimum(F)) {
                const F32 m = load_f16(scales + PANEL * 2);
                OCTAVO_UNROLL for (int r = 0; r < R; r++) sum[r] = fma(m, set1(term(r)->sum), sum[r]);
            }
            scales += block_bytes(F);
            terms += sizeof(BlockTerms);
        }
        if constexpr (by_row) {
            const F32 d = load(reinterpret_cast<const float*>(tile.panel) + half * LANES);
            OCTAVO_UNROLL for (int r = 0; r < R; r++) sum[r] = sum[r] * d;
        }
        OCTAVO_UNROLL for (int r = 0; r < R; r++) store(out[r] + half * LANES, sum[r]);
    }
    prefetcher = next;
}

#endif

// ---- which tile ------------------------------------------------------------------------------------------------------------------------

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
TileKernel kernel_for(int rows) {
    return kernel_for<F>(rows, std::make_integer_sequence<int, is_dense(F) ? DENSE_TILE : BYTE_TILE>());
}

#if defined(OCTAVO_AMX)

// Fewer rows of bytes are faster without tiles.
constexpr int AMX_BYTE_ROWS = 6;

constexpr int most_rows(Format format) { return format == Format::F32 ? DENSE_TILE : format == Format::BF16 ? 2 * TILE_ROWS : TILE_ROWS; }
TileKernel amx_kernel(Format format, int rows) {
    switch (format) {
        case Format::BF16: return rows > TILE_ROWS ? amx_tile_bf16<true> : amx_tile_bf16<false>;
        case Format::U8_ROW: return amx_tile_bytes<Format::U8_ROW>;
        case Format::U8_BLOCK: return amx_tile_bytes<Format::U8_BLOCK>;
        case Format::U8_BLOCK_MIN: return amx_tile_bytes<Format::U8_BLOCK_MIN>;
        case Format::U4_BLOCK: return amx_tile_bytes<Format::U4_BLOCK>;
        default: return amx_tile_bytes<Format::U4_BLOCK_MIN>;
    }
}

#else

constexpr int most_rows(Format format) { return is_dense(format) ? DENSE_TILE : BYTE_TILE; }

#endif

TileKernel kernel_of(Format format, int rows) {
#if defined(OCTAVO_AMX)
    if (format == Format::BF16 || (format != Format::F32 && rows >= AMX_BYTE_ROWS)) return amx_kernel(format, rows);
#endif
    switch (format) {
        case Format::F32: return kernel_for<Format::F32>(rows);
        case Format::BF16: return kernel_for<Format::BF16>(rows);
        case Format::U8_ROW: return kernel_for<Format::U8_ROW>(rows);
        case Format::U8_BLOCK: return kernel_for<Format::U8_BLOCK>(rows);
        case Format::U8_BLOCK_MIN: return kernel_for<Format::U8_BLOCK_MIN>(rows);
        case Format::U4_BLOCK: return kernel_for<Format::U4_BLOCK>(rows);
        default: return kernel_for<Format::U4_BLOCK_MIN>(rows);
    }
}

// ---- after the product -----------------------------------------------------------------------------------------------------------------

OCTAVO_INLINE void put(const LinearOp& op, float* to, F32 value, int n) {
    if (op.softcap > 0) value = set1(op.softcap) * tanh(value / set1(op.softcap));
    if (n >= LANES) store(to, op.add ? load(to) + value : value);
    else store(to, op.add ? load(to, n) + value : value, n);
}

// Columns of one panel of one row.
OCTAVO_INLINE void finish(const LinearOp& op, int panel, float* result, int t) {
    F32 tile0 = load(result), tile1 = load(result + LANES);
    if (op.weight->bias) {
        tile0 = tile0 + load(op.weight->bias + panel * PANEL);
        tile1 = tile1 + load(op.weight->bias + panel * PANEL + LANES);
    }
    const int column = op.weight->paired ? panel * LANES : panel * PANEL;
    const int left = op.weight->outputs() - column;
    float* to = op.output + t * op.output_stride + column;
    if (op.weight->paired) {
        put(op, to, activate(op.activation, tile0) * tile1, left);
    } else {
        put(op, to, tile0, left);
        if (left > LANES) put(op, to + LANES, tile1, left - LANES);
    }
}

// ---- the loops -------------------------------------------------------------------------------------------------------------------------

// How often a tile's kernel asks the prefetcher for its next lines.
int prefetch_steps(const PackedWeight& weight) {
    if (weight.format == Format::F32) return (weight.k + PREFETCH_EVERY - 1) / PREFETCH_EVERY;
#if defined(OCTAVO_AMX)
    if (weight.format == Format::BF16) return weight.blocks();
#endif
    if (weight.format == Format::BF16) return ((weight.k + 1) / 2 + PREFETCH_EVERY - 1) / PREFETCH_EVERY;
    return weight.blocks();
}

void compute_panel(const LinearOp& op, const uint8_t* operand, size_t row_bytes, Span rows, int panel, bool last_panel, uint8_t* space) {
    const PackedWeight& weight = *op.weight;
    const int most = most_rows(weight.format);
    const int tiles = (rows.last - rows.first + most - 1) / most;
    const uint8_t* data = weight.data + size_t(panel) * weight.panel_bytes;
    const uint8_t* after = data + weight.panel_bytes;
    const int steps = prefetch_steps(weight) * tiles, lines = int((weight.panel_bytes + 63) / 64);
    Prefetcher next{after, last_panel ? after : after + weight.panel_bytes, (lines + steps - 1) / steps};
#if defined(OCTAVO_AMX)
    if (is_four_bit(weight.format) && rows.last - rows.first >= AMX_BYTE_ROWS) unpack_panel(weight, data, space);
#endif
    alignas(64) float out[most_rows(Format::BF16)][PANEL];
    for (int i = 0; i < tiles; i++) {
        const Span span = share_of(rows.last - rows.first, i, tiles);
        const int first = rows.first + span.first, height = span.last - span.first;
        kernel_of(weight.format, height)({operand + size_t(first) * row_bytes, height, row_bytes, data, space, weight.k}, next, out);
        for (int r = 0; r < height; r++) finish(op, panel, out[r], first + r);
    }
}

}  // namespace

void linear(const LinearOp& op, const Step& step, Worker& worker) {
    const PackedWeight& weight = *op.weight;
    const size_t row_bytes = operand_row_bytes(weight.format, weight.k);
#if defined(OCTAVO_AMX)
    const TilesInUse tiles(tile_shapes(weight.format));
#endif
    const bool own = step.tokens <= OWN_OPERAND_ROWS;
    uint8_t* operand = own ? worker.scratch : worker.shared;
    float* spare = reinterpret_cast<float*>(worker.scratch + OPERAND_ROWS * row_bytes);
    uint8_t* space = worker.scratch + unpacked_offset(row_bytes, weight.k);
    const Span mine = own ? Span{0, step.tokens} : share_of(step.tokens, worker.id, worker.count);
    for (int t = mine.first; t < mine.last; t++) {
        prepare_row(op.input + t * op.input_stride, weight.k, op.norm, weight, spare, operand + size_t(t) * row_bytes);
    }
    if (!own) worker.barrier();
    // Few rows are over before a thread could help another. For more, runs of panels go to whoever is free: where something else
    // takes a core for a while, the other threads do not wait for its share.
    const int runs = own ? worker.count : weight.panels < RUNS * worker.count ? weight.panels : RUNS * worker.count;
    const int tasks = own ? runs : (step.tokens + ROW_CHUNK - 1) / ROW_CHUNK * runs;
    const auto next = [&] { return own ? tasks : worker.next_task->fetch_add(1, std::memory_order_relaxed); };
    for (int task = own ? worker.id : next(); task < tasks; task = next()) {
        const int first = task / runs * ROW_CHUNK;
        const int last = first + ROW_CHUNK < step.tokens ? first + ROW_CHUNK : step.tokens;
        const Span panels = share_of(weight.panels, task % runs, runs);
        for (int panel = panels.first; panel < panels.last; panel++) {
            compute_panel(op, operand, row_bytes, {first, last}, panel, panel + 1 == panels.last, space);
        }
    }
}

}  // namespace octavo::OCTAVO_ISA
