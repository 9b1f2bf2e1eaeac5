// Rows of activations to rows of a product's left side (operand.h), normalised on the way where a norm stands before the product.
#include "amx.h"
#include "kernels.h"
#include "operand.h"
#include "simd.h"

namespace octavo::OCTAVO_ISA {

namespace {

// Sixteen values of a row from column c on, 0 past its width.
OCTAVO_INLINE F32 load_at(const float* row, int c, int width) { return width - c >= LANES ? load(row + c) : load(row + c, width - c); }

OCTAVO_INLINE void store_at(float* row, int c, int width, F32 value) {
    if (width - c >= LANES) store(row + c, value);
    else store(row + c, value, width - c);
}

// 1 / sqrt(mean square + eps); four sums in turn, so that one row's additions do not wait for each other.
float inverse_rms(const float* row, int width, float eps) {
    F32 sums[4] = {zero(), zero(), zero(), zero()};
    int c = 0;
    for (; c + 4 * LANES <= width; c += 4 * LANES) {
        for (int i = 0; i < 4; i++) {
            const F32 x = load(row + c + i * LANES);
            sums[i] = fma(x, x, sums[i]);
        }
    }
    for (int i = 0; c < width; c += LANES, i++) {
        const F32 x = load_at(row, c, width);
        sums[i] = fma(x, x, sums[i]);
    }
    const float mean = reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3])) / float(width);
    return 1.0f / std::sqrt(mean + eps);
}

void write_bf16(const float* row, int width, uint8_t* out) {
    int c = 0;
    for (; c + LANES <= width; c += LANES) store_bf16(out + 2 * c, load(row + c));
    if (c < width) store_bf16(out + 2 * c, load(row + c, width - c), width - c);
    if (width % BLOCK) std::memset(out + 2 * width, 0, size_t(BLOCK - width % BLOCK) * 2);
}

// Blocks of no larger values count as zeros: what is divided by them would be infinite.
constexpr float NEXT_TO_NOTHING = 1e-36f;

#if defined(OCTAVO_AMX)
// A row's pairs, each to its place in a line of 16 rows.
void write_pairs(const float* row, int width, uint8_t* group, int r) {
    const __m512i lines = _mm512_slli_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), 6);
    for (int c = 0; c < width; c += BLOCK, group += GROUP_ROWS * BLOCK * 2) {
        const __m512bh both = _mm512_cvtne2ps_pbh(load_at(row, c + LANES, width).v, load_at(row, c, width).v);
        _mm512_i32scatter_epi32(group + r * 4, lines, (__m512i)both, 1);
    }
}

// A row as whole numbers of a step. There are more steps in a row than in a block, so more counts as nothing.
void write_wide(const float* row, int width, int zero_point, uint8_t* group, int r) {
    F32 most = zero(), poison = zero();
    for (int c = 0; c < width; c += LANES) {
        const F32 x = load_at(row, c, width);
        most = max(abs(x), most);
        poison = fma(x, zero(), poison);
    }
    const float top = reduce_max(most);
    const F32 inverse = set1(top > 256.0f * NEXT_TO_NOTHING ? WIDE_STEPS / top : 0.0f);
    I32 high_sum = izero(), low_sum = izero();
    uint8_t* high = group + r * 64;
    uint8_t* low = high + wide_part_bytes(width);
    for (int c = 0; c < (width + 63) / 64 * 64; c += LANES) {
        const I32 number = c < width ? to_i32(load_at(row, c, width) * inverse) : izero();
        const size_t at = size_t(c / 64) * GROUP_ROWS * 64 + c % 64;
        store_bytes(high + at, shift_right<8>(number + iset1(128)));
        store_bytes(low + at, number);
        high_sum = high_sum + load_int8(high + at);
        low_sum = low_sum + load_int8(low + at);
    }
    WideTerms* terms = reinterpret_cast<WideTerms*>(group + 2 * wide_part_bytes(width)) + r;
    *terms = {top + reduce_add(poison), -zero_point * reduce_add(high_sum), -zero_point * reduce_add(low_sum), 0};
}
#endif

// The high bytes of a block and their sum; x / scale goes back to `scaled` for the low ones.
OCTAVO_INLINE int32_t write_high(const float* x, int width, F32 inverse, int8_t* high, F32* scaled) {
    I32 sum = izero();
    for (int i = 0; i < BLOCK / LANES; i++) {
        const int left = width - i * LANES;
        const F32 value = left >= LANES ? load(x + i * LANES) : load(x + i * LANES, left > 0 ? left : 0);
        scaled[i] = value * inverse;
        const I32 q = to_i32(scaled[i]);
        store_bytes(high + i * LANES, q);
        sum = sum + q;
        scaled[i] = scaled[i] - to_f32(q);
    }
    return reduce_add(sum);
}

OCTAVO_INLINE int32_t write_low(const F32* rest, int8_t* low) {
    I32 sum = izero();
    for (int i = 0; i < BLOCK / LANES; i++) {
        const I32 q = to_i32(min(rest[i] * set1(256.0f), set1(127.0f)));
        store_bytes(low + i * LANES, q);
        sum = sum + q;
    }
    return reduce_add(sum);
}

void write_bytes(const float* row, int width, int zero_point, uint8_t* group, int r) {
    const int blocks = (width + BLOCK - 1) / BLOCK;
    int8_t* high = reinterpret_cast<int8_t*>(group) + r * BLOCK;
    int8_t* low = high + low_offset(blocks);
    BlockTerms* terms = group_terms(group, blocks) + r;
    uint32_t* wide = group_wide(group, blocks) + r;
    F32 poison = zero();  // stays 0 unless a value is not finite
    float total = 0;
    for (int b = 0; b < blocks; b++) {
        F32 most = zero();
        for (int c = b * BLOCK; c < (b + 1) * BLOCK && c < width; c += LANES) {
            const F32 x = load_at(row, c, width);
            most = max(abs(x), most);
            poison = fma(x, zero(), poison);
        }
        terms[b * GROUP_ROWS].scale = reduce_max(most);
        total += terms[b * GROUP_ROWS].scale;
    }
    for (int i = 0; i < (blocks + 31) / 32; i++) wide[i * GROUP_ROWS] = 0;
    const bool is_number = reduce_add(poison) == 0.0f;
    const float bar = WIDE_ABOVE * total / float(blocks);
    for (int b = 0; b < blocks; b++, high += GROUP_ROWS * BLOCK, low += GROUP_ROWS * BLOCK, terms += GROUP_ROWS) {
        if (!is_number) {  // nothing of the row means anything: it multiplies to NaN
            std::memset(high, 0, BLOCK);
            std::memset(low, 0, BLOCK);
            *terms = {__builtin_nanf(""), __builtin_nanf(""), 0, 0};
            continue;
        }
        const float most = terms->scale;
        F32 rest[BLOCK / LANES];
        const F32 inverse = set1(most > NEXT_TO_NOTHING ? 127.0f / most : 0.0f);
        const int32_t high_sum = write_high(row + b * BLOCK, width - b * BLOCK, inverse, high, rest);
        int32_t low_sum = 0;
        if (most > bar) {
            low_sum = write_low(rest, low);
            wide[b / 32 * GROUP_ROWS] |= 1u << (b % 32);
        } else {
            std::memset(low, 0, BLOCK);
        }
        const float scale = most / 127.0f;
        *terms = {scale, scale * (float(high_sum) + float(low_sum) * 0.00390625f), -zero_point * high_sum, -zero_point * low_sum};
    }
}

}  // namespace

void normalise_row(const float* input, int width, const Norm& norm, float* output) {
    const F32 inverse = set1(inverse_rms(input, width, norm.eps)), plus = set1(norm.plus_one);
    for (int c = 0; c < width; c += LANES) {
        store_at(output, c, width, load_at(input, c, width) * inverse * (load_at(norm.weight, c, width) + plus));
    }
}

void prepare_row(const float* input, int width, const Norm& norm, const PackedWeight& weight, float* spare, uint8_t* group, int row) {
    const Format format = weight.format;
    uint8_t* dense = group + size_t(row) * (is_dense(format) ? operand_row_bytes(format, width) : 0);
    if (norm.weight) {
        float* normed = format == Format::F32 ? reinterpret_cast<float*>(dense) : spare;
        normalise_row(input, width, norm, normed);
        input = normed;
    }
#if defined(OCTAVO_AMX)
    if (is_table(format)) return write_pairs(input, width, group, row);
    if (is_wide(format)) return write_wide(input, width, weight.zero, group, row);
#endif
    if (format == Format::BF16) write_bf16(input, width, dense);
    else if (format != Format::F32) write_bytes(input, width, weight.zero, group, row);
    else if (!norm.weight) std::memcpy(dense, input, size_t(width) * 4);
}

}  // namespace octavo::OCTAVO_ISA
