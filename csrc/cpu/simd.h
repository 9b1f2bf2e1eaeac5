// Sixteen lanes on every instruction set. Kernels are written once over F32, I32 and a few dot products; this file is compiled anew for
// each instruction set (CMakeLists.txt), which picks one of three implementations:
//
//   __AVX512F__   one 512-bit register; bf16 and int8 dot products in hardware with __AVX512BF16__ and __AVX512VNNI__
//   __AVX2__      two 256-bit registers (with FMA and F16C)
//   otherwise     an array of sixteen numbers
//
// All three do the same IEEE operations in the same order, so that results are bit-equal across instruction sets, with two exceptions:
// bf16 where the hardware has it: dot_bf16 rounds in its own way, and numbers below 2^-126 become 0; and fma on processors that have none,
// which rounds twice there.
//
// Everything is in OCTAVO_ISA, a namespace of its own for each instruction set: an inline function that the linker shared between them
// could run an instruction that the processor lacks.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#ifndef OCTAVO_ISA
#error "OCTAVO_ISA names the instruction set's namespace"
#endif

#define OCTAVO_INLINE static inline __attribute__((always_inline))
// Before loops over a compile-time count, whose arrays are registers only once the loop is gone. Sixteen numbers are no register.
#if defined(__AVX2__) || defined(__AVX512F__)
#define OCTAVO_UNROLL _Pragma("GCC unroll 16")
#else
#define OCTAVO_UNROLL
#endif

namespace octavo::OCTAVO_ISA {

constexpr int LANES = 16;

OCTAVO_INLINE float bf16_to_f32(uint16_t value) {
    const uint32_t bits = uint32_t(value) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

// Round to nearest even; NaN stays NaN.
OCTAVO_INLINE uint16_t f32_to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t((bits >> 16) | 0x40);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

OCTAVO_INLINE float f16_to_f32(uint16_t value) {
    const uint32_t sign = uint32_t(value & 0x8000) << 16;
    const uint32_t exponent = (value >> 10) & 31, fraction = value & 1023;
    uint32_t bits;
    if (exponent == 31) {
        bits = sign | 0x7f800000 | (fraction << 13);
    } else if (exponent) {
        bits = sign | ((exponent + 112) << 23) | (fraction << 13);
    } else {
        const float small = float(fraction) * 5.9604644775390625e-8f;  // 2^-24
        std::memcpy(&bits, &small, 4);
        bits |= sign;
    }
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

// ---- AVX-512 -----------------------------------------------------------------------------------------------------------------------
#if defined(__AVX512F__)

constexpr int REGISTERS = 32;  // of sixteen lanes

struct F32 {
    __m512 v;
};
struct I32 {
    __m512i v;
};

OCTAVO_INLINE F32 zero() { return {_mm512_setzero_ps()}; }
OCTAVO_INLINE F32 set1(float x) { return {_mm512_set1_ps(x)}; }
OCTAVO_INLINE F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
OCTAVO_INLINE F32 load(const float* p, int n) { return {_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p)}; }
OCTAVO_INLINE void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
OCTAVO_INLINE void store(float* p, F32 a, int n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), a.v); }
OCTAVO_INLINE F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
OCTAVO_INLINE F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
OCTAVO_INLINE F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
OCTAVO_INLINE F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
OCTAVO_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// As std::fmax would be without its care for NaN: where either is NaN, b.
OCTAVO_INLINE F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
OCTAVO_INLINE F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
OCTAVO_INLINE F32 abs(F32 a) { return {_mm512_abs_ps(a.v)}; }
// Lane i of a where i < n, of b elsewhere.
OCTAVO_INLINE F32 first_lanes(int n, F32 a, F32 b) { return {_mm512_mask_blend_ps(__mmask16((1u << n) - 1), b.v, a.v)}; }
// Lane-wise a > b ? x : y.
OCTAVO_INLINE F32 where_greater(F32 a, F32 b, F32 x, F32 y) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), y.v, x.v)};
}
OCTAVO_INLINE F32 round_even(F32 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

OCTAVO_INLINE I32 izero() { return {_mm512_setzero_si512()}; }
OCTAVO_INLINE I32 iset1(int32_t x) { return {_mm512_set1_epi32(x)}; }
OCTAVO_INLINE I32 iload(const void* p) { return {_mm512_loadu_si512(p)}; }
OCTAVO_INLINE void istore(void* p, I32 a) { _mm512_storeu_si512(p, a.v); }
OCTAVO_INLINE I32 operator+(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
OCTAVO_INLINE I32 operator-(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
OCTAVO_INLINE I32 operator&(I32 a, I32 b) { return {_mm512_and_si512(a.v, b.v)}; }
template <int N>
OCTAVO_INLINE I32 shift_left(I32 a) { return {_mm512_slli_epi32(a.v, N)}; }
template <int N>
OCTAVO_INLINE I32 shift_right(I32 a) { return {_mm512_srli_epi32(a.v, N)}; }
OCTAVO_INLINE F32 to_f32(I32 a) { return {_mm512_cvtepi32_ps(a.v)}; }
// Round to nearest even; values outside int32 give INT32_MIN.
OCTAVO_INLINE I32 to_i32(F32 a) { return {_mm512_cvtps_epi32(a.v)}; }
OCTAVO_INLINE F32 bits_to_f32(I32 a) { return {_mm512_castsi512_ps(a.v)}; }
OCTAVO_INLINE I32 f32_to_bits(F32 a) { return {_mm512_castps_si512(a.v)}; }
// The low byte of each lane.
OCTAVO_INLINE void store_bytes(void* p, I32 a) { _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v)); }
OCTAVO_INLINE I32 load_int8(const void* p) { return {_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)))}; }
OCTAVO_INLINE F32 load_f16(const void* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)))}; }
OCTAVO_INLINE F32 load_bf16(const void* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p))), 16))};
}
OCTAVO_INLINE I32 bf16_bits(F32 a) {  // in the low half of each lane
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    return {_mm512_mask_or_epi32(rounded, nan, _mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40))};
}
OCTAVO_INLINE __m256i to_bf16(F32 a) {
#if defined(__AVX512BF16__)
    return (__m256i)_mm512_cvtneps_pbh(a.v);
#else
    return _mm512_cvtepi32_epi16(bf16_bits(a).v);
#endif
}
OCTAVO_INLINE void store_bf16(void* p, F32 a) { _mm256_storeu_si256(static_cast<__m256i*>(p), to_bf16(a)); }
OCTAVO_INLINE void store_bf16(void* p, F32 a, int n) { _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), to_bf16(a)); }

// Sums and maxima over lanes, halves first: lanes i and i + 8, then i and i + 4, ...
OCTAVO_INLINE float reduce_add(F32 a) {
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1)));
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
OCTAVO_INLINE float reduce_max(F32 a) { return _mm512_reduce_max_ps(a.v); }
OCTAVO_INLINE int32_t reduce_add(I32 a) { return _mm512_reduce_add_epi32(a.v); }

// acc[i] += w[4 i] a[0] + .. + w[4 i + 3] a[3], w unsigned bytes, a four signed bytes in one word. Exact.
OCTAVO_INLINE I32 dot_u8s8(I32 acc, I32 w, int32_t a) {
#if defined(__AVX512VNNI__)
    return {_mm512_dpbusd_epi32(acc.v, w.v, _mm512_set1_epi32(a))};
#else
    const __m512i all = _mm512_set1_epi32(a);
    const __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(all, 8), 8), odd = _mm512_srai_epi16(all, 8);
    const __m512i products = _mm512_add_epi32(_mm512_madd_epi16(_mm512_and_si512(w.v, _mm512_set1_epi16(0xff)), even),
                                              _mm512_madd_epi16(_mm512_srli_epi16(w.v, 8), odd));
    return {_mm512_add_epi32(acc.v, products)};
#endif
}

// acc[i] += w[2 i] a[0] + w[2 i + 1] a[1], all bf16, a two of them in one word.
OCTAVO_INLINE F32 dot_bf16(F32 acc, I32 w, int32_t a) {
#if defined(__AVX512BF16__)
    return {_mm512_dpbf16_ps(acc.v, (__m512bh)w.v, (__m512bh)_mm512_set1_epi32(a))};
#else
    const __m512 low = _mm512_castsi512_ps(_mm512_slli_epi32(w.v, 16)), high = _mm512_castsi512_ps(_mm512_and_si512(w.v, _mm512_set1_epi32(0xffff0000)));
    const __m512 first = _mm512_castsi512_ps(_mm512_set1_epi32(int32_t(uint32_t(a) << 16))), second = _mm512_castsi512_ps(_mm512_set1_epi32(int32_t(a & 0xffff0000)));
    return {_mm512_fmadd_ps(high, second, _mm512_fmadd_ps(low, first, acc.v))};
#endif
}

// a * 2^n for whole n in [-126, 127].
OCTAVO_INLINE F32 scale_by_power(F32 a, F32 n) { return {_mm512_scalef_ps(a.v, n.v)}; }

// ---- AVX2 --------------------------------------------------------------------------------------------------------------------------
#elif defined(__AVX2__)

constexpr int REGISTERS = 8;

struct F32 {
    __m256 a, b;  // lanes 0 .. 7, 8 .. 15
};
struct I32 {
    __m256i a, b;
};

OCTAVO_INLINE __m256i lanes_below(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }

OCTAVO_INLINE F32 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
OCTAVO_INLINE F32 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
OCTAVO_INLINE F32 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
OCTAVO_INLINE F32 load(const float* p, int n) { return {_mm256_maskload_ps(p, lanes_below(n)), _mm256_maskload_ps(p + 8, lanes_below(n - 8))}; }
OCTAVO_INLINE void store(float* p, F32 x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
OCTAVO_INLINE void store(float* p, F32 x, int n) {
    _mm256_maskstore_ps(p, lanes_below(n), x.a);
    _mm256_maskstore_ps(p + 8, lanes_below(n - 8), x.b);
}
OCTAVO_INLINE F32 operator+(F32 x, F32 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
OCTAVO_INLINE F32 operator-(F32 x, F32 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
OCTAVO_INLINE F32 operator*(F32 x, F32 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
OCTAVO_INLINE F32 operator/(F32 x, F32 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
OCTAVO_INLINE F32 fma(F32 x, F32 y, F32 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
OCTAVO_INLINE F32 max(F32 x, F32 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
OCTAVO_INLINE F32 min(F32 x, F32 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
OCTAVO_INLINE F32 abs(F32 x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
OCTAVO_INLINE F32 first_lanes(int n, F32 x, F32 y) {
    return {_mm256_blendv_ps(y.a, x.a, _mm256_castsi256_ps(lanes_below(n))), _mm256_blendv_ps(y.b, x.b, _mm256_castsi256_ps(lanes_below(n - 8)))};
}
OCTAVO_INLINE F32 where_greater(F32 a, F32 b, F32 x, F32 y) {
    return {_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_GT_OQ)), _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_GT_OQ))};
}
OCTAVO_INLINE F32 round_even(F32 x) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}

OCTAVO_INLINE I32 izero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
OCTAVO_INLINE I32 iset1(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
OCTAVO_INLINE I32 iload(const void* p) {
    const __m256i* q = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
OCTAVO_INLINE void istore(void* p, I32 x) {
    __m256i* q = static_cast<__m256i*>(p);
    _mm256_storeu_si256(q, x.a);
    _mm256_storeu_si256(q + 1, x.b);
}
OCTAVO_INLINE I32 operator+(I32 x, I32 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
OCTAVO_INLINE I32 operator-(I32 x, I32 y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
OCTAVO_INLINE I32 operator&(I32 x, I32 y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
template <int N>
OCTAVO_INLINE I32 shift_left(I32 x) { return {_mm256_slli_epi32(x.a, N), _mm256_slli_epi32(x.b, N)}; }
template <int N>
OCTAVO_INLINE I32 shift_right(I32 x) { return {_mm256_srli_epi32(x.a, N), _mm256_srli_epi32(x.b, N)}; }
OCTAVO_INLINE F32 to_f32(I32 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
OCTAVO_INLINE I32 to_i32(F32 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
OCTAVO_INLINE F32 bits_to_f32(I32 x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
OCTAVO_INLINE I32 f32_to_bits(F32 x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
OCTAVO_INLINE void store_bytes(void* p, I32 x) {
    const __m256i pick = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1,
                                          -1, -1, -1, -1);
    const __m256i low = _mm256_shuffle_epi8(x.a, pick), high = _mm256_shuffle_epi8(x.b, pick);
    const int32_t words[4] = {_mm256_extract_epi32(low, 0), _mm256_extract_epi32(low, 4), _mm256_extract_epi32(high, 0), _mm256_extract_epi32(high, 4)};
    std::memcpy(p, words, 16);
}
OCTAVO_INLINE I32 load_int8(const void* p) {
    const __m128i bytes = _mm_loadu_si128(static_cast<const __m128i*>(p));
    return {_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))};
}
OCTAVO_INLINE F32 load_f16(const void* p) {
    const __m128i* q = static_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
OCTAVO_INLINE F32 load_bf16(const void* p) {
    const __m128i* q = static_cast<const __m128i*>(p);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1)), 16))};
}
OCTAVO_INLINE __m256i bf16_bits_half(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x), top = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, _mm256_or_si256(top, _mm256_set1_epi32(0x40)), nan);
}
OCTAVO_INLINE I32 bf16_bits(F32 x) { return {bf16_bits_half(x.a), bf16_bits_half(x.b)}; }
OCTAVO_INLINE void store_bf16(void* p, F32 x) {
    const I32 bits = bf16_bits(x);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits.a, bits.b), 0xd8);
    _mm256_storeu_si256(static_cast<__m256i*>(p), packed);
}
OCTAVO_INLINE void store_bf16(void* p, F32 x, int n) {
    alignas(32) uint16_t all[LANES];
    store_bf16(all, x);
    std::memcpy(p, all, size_t(n) * 2);
}

OCTAVO_INLINE float reduce_add(F32 x) {
    const __m256 h = _mm256_add_ps(x.a, x.b);
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
OCTAVO_INLINE float reduce_max(F32 x) {
    const __m256 h = _mm256_max_ps(x.a, x.b);
    const __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(d, _mm_shuffle_ps(d, d, 1)));
}
OCTAVO_INLINE int32_t reduce_add(I32 x) {
    alignas(32) int32_t all[LANES];
    istore(all, x);
    int32_t sum = 0;
    for (int i = 0; i < LANES; i++) sum += all[i];
    return sum;
}

OCTAVO_INLINE I32 dot_u8s8(I32 acc, I32 w, int32_t a) {
    const __m256i all = _mm256_set1_epi32(a), bytes = _mm256_set1_epi16(0xff);
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(all, 8), 8), odd = _mm256_srai_epi16(all, 8);
    const auto dot = [&](__m256i sum, __m256i v) __attribute__((always_inline)) {
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_and_si256(v, bytes), even));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_srli_epi16(v, 8), odd));
    };
    return {dot(acc.a, w.a), dot(acc.b, w.b)};
}

OCTAVO_INLINE F32 dot_bf16(F32 acc, I32 w, int32_t a) {
    const __m256 first = _mm256_castsi256_ps(_mm256_set1_epi32(int32_t(uint32_t(a) << 16)));
    const __m256 second = _mm256_castsi256_ps(_mm256_set1_epi32(int32_t(a & 0xffff0000)));
    const auto dot = [&](__m256 sum, __m256i v) __attribute__((always_inline)) {
        sum = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(v, 16)), first, sum);
        return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(int32_t(0xffff0000)))), second, sum);
    };
    return {dot(acc.a, w.a), dot(acc.b, w.b)};
}

OCTAVO_INLINE F32 scale_by_power(F32 x, F32 n) {
    const auto power = [](__m256 e) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(e), _mm256_set1_epi32(127)), 23));
    };
    return {_mm256_mul_ps(x.a, power(n.a)), _mm256_mul_ps(x.b, power(n.b))};
}

// ---- scalar ------------------------------------------------------------------------------------------------------------------------
#else

constexpr int REGISTERS = 2;

struct F32 {
    float v[LANES];
};
struct I32 {
    int32_t v[LANES];
};

#define OCTAVO_LANEWISE(type, expression)         \
    type r;                                       \
    for (int i = 0; i < LANES; i++) r.v[i] = (expression); \
    return r

OCTAVO_INLINE F32 set1(float x) { OCTAVO_LANEWISE(F32, x); }
OCTAVO_INLINE F32 zero() { return set1(0.0f); }
OCTAVO_INLINE F32 load(const float* p) { OCTAVO_LANEWISE(F32, p[i]); }
OCTAVO_INLINE F32 load(const float* p, int n) { OCTAVO_LANEWISE(F32, i < n ? p[i] : 0.0f); }
OCTAVO_INLINE void store(float* p, F32 x) { std::memcpy(p, x.v, sizeof x.v); }
OCTAVO_INLINE void store(float* p, F32 x, int n) { if (n > 0) std::memcpy(p, x.v, size_t(n < LANES ? n : LANES) * 4); }
OCTAVO_INLINE F32 operator+(F32 x, F32 y) { OCTAVO_LANEWISE(F32, x.v[i] + y.v[i]); }
OCTAVO_INLINE F32 operator-(F32 x, F32 y) { OCTAVO_LANEWISE(F32, x.v[i] - y.v[i]); }
OCTAVO_INLINE F32 operator*(F32 x, F32 y) { OCTAVO_LANEWISE(F32, x.v[i] * y.v[i]); }
OCTAVO_INLINE F32 operator/(F32 x, F32 y) { OCTAVO_LANEWISE(F32, x.v[i] / y.v[i]); }
OCTAVO_INLINE float fma_lane(float x, float y, float z) {
#ifdef __FP_FAST_FMAF
    return __builtin_fmaf(x, y, z);
#else
    return x * y + z;  // in software a fused one is a hundred times slower
#endif
}
OCTAVO_INLINE F32 fma(F32 x, F32 y, F32 z) { OCTAVO_LANEWISE(F32, fma_lane(x.v[i], y.v[i], z.v[i])); }
OCTAVO_INLINE F32 max(F32 x, F32 y) { OCTAVO_LANEWISE(F32, x.v[i] > y.v[i] ? x.v[i] : y.v[i]); }
OCTAVO_INLINE F32 min(F32 x, F32 y) { OCTAVO_LANEWISE(F32, x.v[i] < y.v[i] ? x.v[i] : y.v[i]); }
OCTAVO_INLINE F32 abs(F32 x) { OCTAVO_LANEWISE(F32, __builtin_fabsf(x.v[i])); }
OCTAVO_INLINE F32 first_lanes(int n, F32 x, F32 y) { OCTAVO_LANEWISE(F32, i < n ? x.v[i] : y.v[i]); }
OCTAVO_INLINE F32 where_greater(F32 a, F32 b, F32 x, F32 y) { OCTAVO_LANEWISE(F32, a.v[i] > b.v[i] ? x.v[i] : y.v[i]); }
OCTAVO_INLINE F32 round_even(F32 x) { OCTAVO_LANEWISE(F32, __builtin_nearbyintf(x.v[i])); }

OCTAVO_INLINE I32 iset1(int32_t x) { OCTAVO_LANEWISE(I32, x); }
OCTAVO_INLINE I32 izero() { return iset1(0); }
OCTAVO_INLINE I32 iload(const void* p) {
    I32 r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
}
OCTAVO_INLINE void istore(void* p, I32 x) { std::memcpy(p, x.v, sizeof x.v); }
OCTAVO_INLINE I32 operator+(I32 x, I32 y) { OCTAVO_LANEWISE(I32, int32_t(uint32_t(x.v[i]) + uint32_t(y.v[i]))); }
OCTAVO_INLINE I32 operator-(I32 x, I32 y) { OCTAVO_LANEWISE(I32, int32_t(uint32_t(x.v[i]) - uint32_t(y.v[i]))); }
OCTAVO_INLINE I32 operator&(I32 x, I32 y) { OCTAVO_LANEWISE(I32, x.v[i] & y.v[i]); }
template <int N>
OCTAVO_INLINE I32 shift_left(I32 x) { OCTAVO_LANEWISE(I32, int32_t(uint32_t(x.v[i]) << N)); }
template <int N>
OCTAVO_INLINE I32 shift_right(I32 x) { OCTAVO_LANEWISE(I32, int32_t(uint32_t(x.v[i]) >> N)); }
OCTAVO_INLINE F32 to_f32(I32 x) { OCTAVO_LANEWISE(F32, float(x.v[i])); }
OCTAVO_INLINE I32 to_i32(F32 x) {
    OCTAVO_LANEWISE(I32, x.v[i] >= -2147483648.0f && x.v[i] < 2147483648.0f ? int32_t(__builtin_nearbyintf(x.v[i])) : INT32_MIN);
}
OCTAVO_INLINE F32 bits_to_f32(I32 x) {
    F32 r;
    std::memcpy(r.v, x.v, sizeof r.v);
    return r;
}
OCTAVO_INLINE I32 f32_to_bits(F32 x) {
    I32 r;
    std::memcpy(r.v, x.v, sizeof r.v);
    return r;
}
OCTAVO_INLINE void store_bytes(void* p, I32 x) {
    uint8_t bytes[LANES];
    for (int i = 0; i < LANES; i++) bytes[i] = uint8_t(x.v[i]);
    std::memcpy(p, bytes, LANES);
}
OCTAVO_INLINE I32 load_int8(const void* p) { OCTAVO_LANEWISE(I32, static_cast<const int8_t*>(p)[i]); }
OCTAVO_INLINE uint16_t half_at(const void* p, int i) {
    uint16_t value;
    std::memcpy(&value, static_cast<const uint8_t*>(p) + 2 * i, 2);
    return value;
}
OCTAVO_INLINE F32 load_f16(const void* p) { OCTAVO_LANEWISE(F32, f16_to_f32(half_at(p, i))); }
OCTAVO_INLINE F32 load_bf16(const void* p) { OCTAVO_LANEWISE(F32, bf16_to_f32(half_at(p, i))); }
OCTAVO_INLINE I32 bf16_bits(F32 x) { OCTAVO_LANEWISE(I32, f32_to_bf16(x.v[i])); }
OCTAVO_INLINE void store_bf16(void* p, F32 x, int n) {
    uint16_t all[LANES];
    for (int i = 0; i < LANES; i++) all[i] = f32_to_bf16(x.v[i]);
    std::memcpy(p, all, size_t(n) * 2);
}
OCTAVO_INLINE void store_bf16(void* p, F32 x) { store_bf16(p, x, LANES); }

OCTAVO_INLINE float reduce_add(F32 x) {
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) x.v[i] += x.v[i + half];
    return x.v[0];
}
OCTAVO_INLINE float reduce_max(F32 x) {
    float best = x.v[0];
    for (int i = 1; i < LANES; i++) best = x.v[i] > best ? x.v[i] : best;
    return best;
}
OCTAVO_INLINE int32_t reduce_add(I32 x) {
    int32_t sum = 0;
    for (int i = 0; i < LANES; i++) sum += x.v[i];
    return sum;
}

OCTAVO_INLINE I32 dot_u8s8(I32 acc, I32 w, int32_t a) {
    int8_t s[4];
    std::memcpy(s, &a, 4);
    uint8_t u[4 * LANES];
    std::memcpy(u, w.v, sizeof u);
    OCTAVO_LANEWISE(I32, acc.v[i] + u[4 * i] * s[0] + u[4 * i + 1] * s[1] + u[4 * i + 2] * s[2] + u[4 * i + 3] * s[3]);
}

OCTAVO_INLINE F32 dot_bf16(F32 acc, I32 w, int32_t a) {
    const float first = bf16_to_f32(uint16_t(a)), second = bf16_to_f32(uint16_t(uint32_t(a) >> 16));
    OCTAVO_LANEWISE(F32, fma_lane(bf16_to_f32(uint16_t(uint32_t(w.v[i]) >> 16)), second, fma_lane(bf16_to_f32(uint16_t(w.v[i])), first, acc.v[i])));
}

OCTAVO_INLINE F32 scale_by_power(F32 x, F32 n) { return x * bits_to_f32(shift_left<23>(to_i32(n) + iset1(127))); }

#undef OCTAVO_LANEWISE
#endif

// ---- on all of them ----------------------------------------------------------------------------------------------------------------

// e^x for x in about [-87.3, 88.3]; clamped outside, so that e^-inf is about 1e-38 and NaN becomes a number: mask what must be 0.
// Cephes' scheme: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial of degree 6 for e^r (relative error about 1e-7), times 2^n.
OCTAVO_INLINE F32 exp(F32 x) {
    x = max(min(x, set1(88.0f)), set1(-87.0f));
    const F32 n = round_even(x * set1(1.44269504088896341f));
    F32 r = fma(n, set1(-0.693359375f), x);
    r = fma(n, set1(2.12194440e-4f), r);
    F32 p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    p = fma(p, r * r, r + set1(1.0f));
    return scale_by_power(p, n);
}

// tanh(x) = 1 - 2 / (e^2x + 1), odd by construction; for |x| < 0.625 Cephes' polynomial, which keeps small results exact.
OCTAVO_INLINE F32 tanh(F32 x) {
    const F32 a = abs(x), square = x * x;
    F32 small = set1(-5.70498872745e-3f);
    small = fma(small, square, set1(2.06390887954e-2f));
    small = fma(small, square, set1(-5.37397155531e-2f));
    small = fma(small, square, set1(1.33314422036e-1f));
    small = fma(small, square, set1(-3.33332819422e-1f));
    small = fma(small * square, x, x);
    const F32 large = set1(1.0f) - set1(2.0f) / (exp(a + a) + set1(1.0f));
    const F32 signed_large = where_greater(zero(), x, zero() - large, large);
    return where_greater(set1(0.625f), a, small, signed_large);
}

OCTAVO_INLINE int32_t word_at(const void* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return word;
}

}  // namespace octavo::OCTAVO_ISA
