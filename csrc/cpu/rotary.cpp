// Queries and keys: norm of each head, rotation; keys and values into the paged cache.
//
//   for each (token, head) of this thread's share        one unit: a query, key or value head of one token
//       norm                                             where it has a weight
//       rotate the first rotary_dim dimensions           x[i], x[i + half] against each other, all in float32
//       query: stays where it is
//       key, value: one slot's numbers, scattered into the block
//
//                   d = 0      d = 1     ...            key, BF16: 4 bytes (d, d + 1) every 64 bytes    [d / 2][slot % 16][d % 2]
//   slot's row   [ x0 ] .. [ x1 ] ..                    key, INT8: 4 bytes (d .. d + 3) every 64 bytes  [d / 4][slot % 16][d % 4]
//                                                       value, BF16: 2 bytes every 4 bytes              [slot / 2][d][slot % 2]
//
// Two threads may write neighbouring slots at once: each writes its own bytes only, and reads none of the cache.
#include "kernels.h"
#include "simd.h"

namespace octavo::OCTAVO_ISA {
namespace {

constexpr int MAX_HEAD_DIM = 256;

OCTAVO_INLINE int lanes_from(int i, int n) { return n - i < LANES ? n - i : LANES; }

void rotate(float* x, const float* cosines, int half) {
    const float* sines = cosines + half;
    for (int i = 0; i < half; i += LANES) {
        const int lanes = lanes_from(i, half);
        const F32 first = load(x + i, lanes), second = load(x + half + i, lanes);
        const F32 cosine = load(cosines + i, lanes), sine = load(sines + i, lanes);
        store(x + i, fma(first, cosine, zero() - second * sine), lanes);
        store(x + half + i, fma(second, cosine, first * sine), lanes);
    }
}

// A slot of one head: its block, and where in it.
struct Place {
    int64_t block_bytes;  // from the pool's start to the block
    int head, offset;
};

void to_bf16(const float* x, int n, uint16_t* halves) {
    for (int i = 0; i < n; i += LANES) store_bf16(halves + i, load(x + i, lanes_from(i, n)));
}

// x as whole numbers of a 127th of its largest magnitude, plus `offset`, the scale returned. Bytes past n, up to a multiple of 16, stand
// for zeros. A NaN or infinity anywhere makes the scale NaN; all zeros give scale 0 (and 0 / 0, which to_i32 makes a zero byte).
float to_int8(const float* x, int n, int offset, uint8_t* bytes) {
    F32 largest = zero(), poison = zero();
    for (int i = 0; i < n; i += LANES) {
        const F32 v = load(x + i, lanes_from(i, n));
        largest = max(largest, abs(v));
        poison = fma(v, zero(), poison);
    }
    const float scale = reduce_max(largest) / 127.0f + reduce_add(poison);
    for (int i = 0; i < n; i += LANES) store_bytes(bytes + i, to_i32(load(x + i, lanes_from(i, n)) / set1(scale)) + iset1(offset));
    return scale;
}

void store_scale(uint8_t* scales, const LayerCache& cache, const Place& place, float scale) {
    std::memcpy(scales + place.block_bytes + (int64_t(place.head) * cache.block_size + place.offset) * 4, &scale, 4);
}

// `words` words of 4 bytes, one to each line of 64 bytes of the slot's tile.
OCTAVO_INLINE void scatter_key(const LayerCache& cache, const Place& place, const void* key, int words) {
    const int64_t tile_bytes = int64_t(words) * 64;
    uint8_t* tile = cache.keys + place.block_bytes + (int64_t(place.head) * (cache.block_size / LANES) + place.offset / LANES) * tile_bytes;
    uint8_t* out = tile + place.offset % LANES * 4;
    for (int k = 0; k < words; k++) std::memcpy(out + k * 64, static_cast<const uint8_t*>(key) + k * 4, 4);
}

void write_key(const LayerCache& cache, const Place& place, const float* key) {
    alignas(64) uint16_t halves[MAX_HEAD_DIM];
    alignas(64) uint8_t bytes[MAX_HEAD_DIM];
    switch (cache.type) {
        case CacheType::F32: return scatter_key(cache, place, key, cache.head_dim);
        case CacheType::BF16: to_bf16(key, cache.head_dim, halves); return scatter_key(cache, place, halves, cache.head_dim / 2);
        case CacheType::INT8:
            store_scale(cache.key_scales, cache, place, to_int8(key, cache.head_dim, 128, bytes));
            return scatter_key(cache, place, bytes, (cache.head_dim + 3) / 4);
    }
}

void write_value(const LayerCache& cache, const Place& place, const float* value) {
    const int n = cache.head_dim;
    const int64_t slot = int64_t(place.head) * cache.block_size + place.offset;
    uint8_t* block = cache.values + place.block_bytes;
    alignas(64) uint16_t halves[MAX_HEAD_DIM];
    alignas(64) uint8_t bytes[MAX_HEAD_DIM];
    switch (cache.type) {
        case CacheType::F32: std::memcpy(block + slot * n * 4, value, size_t(n) * 4); return;
        case CacheType::BF16: {
            to_bf16(value, n, halves);
            uint8_t* out = block + slot / 2 * n * 4 + slot % 2 * 2;
            for (int d = 0; d < n; d++) std::memcpy(out + d * 4, halves + d, 2);
            return;
        }
        case CacheType::INT8:
            store_scale(cache.value_scales, cache, place, to_int8(value, n, 0, bytes));
            std::memcpy(block + slot * n, bytes, size_t(n));
    }
}

void prepare(float* x, const RotaryCacheOp& op, const Norm& norm, int64_t position) {
    if (norm.weight) normalise_row(x, op.cache.head_dim, norm, x);
    rotate(x, op.cos_sin + position * op.rotary_dim, op.rotary_dim / 2);
}

}  // namespace

void rotary_cache(const RotaryCacheOp& op, const Step& step, Worker& worker) {
    const LayerCache& cache = op.cache;
    const int units = op.heads + 2 * cache.kv_heads;  // of a token: query, then key, then value heads
    const Span span = share_of(step.tokens * units, worker.id, worker.count);
    int token = span.first / units, unit = span.first % units;
    for (int i = span.first; i < span.last; i++) {
        if (unit < op.heads) {
            prepare(op.q + token * op.q_stride + unit * cache.head_dim, op, op.q_norm, step.positions[token]);
        } else {
            const bool is_key = unit < op.heads + cache.kv_heads;
            const int head = unit - op.heads - (is_key ? 0 : cache.kv_heads);
            const int64_t slot = step.slots[token], block = slot / cache.block_size;
            const Place place{block * cache.block_stride, head, int(slot - block * cache.block_size)};
            if (is_key) {
                alignas(64) float key[MAX_HEAD_DIM];
                std::memcpy(key, op.k + token * op.k_stride + head * cache.head_dim, size_t(cache.head_dim) * 4);
                prepare(key, op, op.k_norm, step.positions[token]);
                write_key(cache, place, key);
            } else {
                write_value(cache, place, op.v + token * op.v_stride + head * cache.head_dim);
            }
        }
        if (++unit == units) unit = 0, token++;
    }
}

}  // namespace octavo::OCTAVO_ISA
