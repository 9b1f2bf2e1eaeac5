// The operations of a step, as data: what each one reads, writes and is fixed to. Kernels take one of these, the step, and the thread.
//
// Activations between operations are float32 rows; strides are in floats. Products convert their input to what the weight wants (bf16,
// int8) themselves. Row counts are the step's, never part of an operation: one recorded operation serves every step.
#pragma once

#include <cstdint>

#include "step.h"

namespace octavo {

struct PackedWeight;  // packed_weight.h
class SharedGroup;    // shared_group.h

// RMSNorm of rows: x / sqrt(mean(x^2) + eps) * (weight + plus_one).
struct Norm {
    const float* weight = nullptr;  // null: no norm
    float eps = 0;
    float plus_one = 0;  // 0 or 1
};

enum class Activation : int { NONE, SILU, GELU_TANH };

struct EmbeddingOp {  // output[t] = row token_ids[t] - first of the table, times scale; zeros where it has no such row
    const PackedWeight* table = nullptr;
    int first = 0;
    float scale = 1;
    float* output = nullptr;
    int64_t output_stride = 0;
};

struct StageInputOp {  // output[t] = the step's input[t]: what an earlier pipeline stage made of the token
    float* output = nullptr;
    int64_t output_stride = 0;
    int width = 0;
};

struct LinearOp {  // output[t] (+)= act(norm(input[t]) W^T + b)
    const float* input = nullptr;
    int64_t input_stride = 0;
    Norm norm;  // applied to the input first, where it has a weight
    const PackedWeight* weight = nullptr;
    Activation activation = Activation::NONE;  // where set, the weight's panels pair gate and up: output = act(gate) * up
    bool add = false;                          // add to the output instead of overwriting it
    float* output = nullptr;
    int64_t output_stride = 0;
    float softcap = 0;  // where > 0: softcap * tanh(result / softcap)
};

struct NormOp {  // output row = norm(input row), for rows * heads vectors of `width` each
    const float* input = nullptr;
    int64_t input_stride = 0;
    Norm norm;
    int heads = 1;  // vectors in a row, side by side
    int width = 0;
    float* output = nullptr;
    int64_t output_stride = 0;
    bool add = false;  // output += norm(input)
};

struct AddOp {  // output[t] += input[t]
    const float* input = nullptr;
    int64_t input_stride = 0;
    float* output = nullptr;
    int64_t output_stride = 0;
    int width = 0;
};

struct GatedOp {  // output[t] = act(input[t][0 : width]) * input[t][width : 2 width]
    const float* input = nullptr;
    int64_t input_stride = 0;
    Activation activation = Activation::SILU;
    float* output = nullptr;
    int64_t output_stride = 0;
    int width = 0;
};

struct AllReduceOp {  // output[t] (+)= the sum of all ranks' input[t], in the ranks' order
    float* input = nullptr;  // may be overwritten
    int64_t input_stride = 0;
    float* output = nullptr;
    int64_t output_stride = 0;
    int width = 0;
    bool add = false;
    SharedGroup* group = nullptr;  // the ranks, where all are on this host
    void (*reduce)(void* argument, float* rows, int64_t floats) = nullptr;  // else who sums them in place; rows lie side by side
    void* argument = nullptr;
};

enum class CacheType : int { F32, BF16, INT8 };

// One layer's keys and values in the page pool. Block b of a layer starts at keys + b * block_stride (and values + ...), and holds, for
// each key/value head in turn:
//   keys    tiles of 16 slots, block_size / 16 of them:
//             BF16  [head_dim / 2][16 slots][2]     the layout of a packed weight whose columns are the slots
//             F32   [head_dim][16 slots]
//             INT8  [head_dim / 4][16 slots][4]     (head_dim rounded up to 4; unsigned, 128 added)
//   values    BF16  [block_size / 2][head_dim][2]   pairs of slots side by side: a packed weight whose columns are the dimensions
//             F32   [block_size][head_dim]
//             INT8  [block_size][head_dim]          signed
// For INT8, each value stands for itself times a float32 scale of its slot and head: key_scales, value_scales [kv_heads][block_size]
// in the same block (pointers below, same stride).
// Kernels may read up to 64 bytes past a head's part; slots that were never written hold anything, NaN included.
struct LayerCache {
    uint8_t* keys = nullptr;
    uint8_t* values = nullptr;
    uint8_t* key_scales = nullptr;
    uint8_t* value_scales = nullptr;
    int64_t block_stride = 0;  // bytes
    CacheType type = CacheType::BF16;
    int kv_heads = 0;
    int head_dim = 0;
    int block_size = 16;  // a multiple of 16
};

struct RotaryCacheOp {  // rotate q in place and k, write k and v to the cache
    float* q = nullptr;  // [t, heads, head_dim]
    int64_t q_stride = 0;
    float* k = nullptr;  // [t, kv_heads, head_dim]
    int64_t k_stride = 0;
    const float* v = nullptr;
    int64_t v_stride = 0;
    const float* cos_sin = nullptr;  // [positions, rotary_dim]: cosines then sines of rotary_dim / 2 angles
    int rotary_dim = 0;              // halves of the first rotary_dim dimensions are rotated against each other; the rest pass
    int heads = 0;
    Norm q_norm, k_norm;  // on each head before the rotation, where they have a weight
    LayerCache cache;
};

struct AttentionOp {  // output[t] = causal attention of q[t] over its sequence's cached positions up to its own
    const float* q = nullptr;  // [t, heads, head_dim]
    int64_t q_stride = 0;
    float* output = nullptr;  // [t, heads, head_dim]
    int64_t output_stride = 0;
    int heads = 0;
    float scale = 1;
    int window = 0;     // > 0: a query at p sees p - window + 1 .. p
    float softcap = 0;  // > 0: scores become softcap * tanh(score / softcap)
    LayerCache cache;
};

// Bytes of per-thread scratch that attention needs for heads of this size.
size_t attention_scratch_bytes(int heads, int kv_heads, int head_dim);

// One instruction set's kernels. All threads of a team call the same one with the same arguments at once; a kernel returns without a
// barrier at its end, the caller puts one there.
struct Kernels {
    const char* name;  // "amx", "avx512_bf16", "avx512", "avx2", "scalar"
    bool has_amx;      // whether linear takes the formats that need it
    void (*embedding)(const EmbeddingOp&, const Step&, Worker&);
    void (*stage_input)(const StageInputOp&, const Step&, Worker&);
    void (*linear)(const LinearOp&, const Step&, Worker&);
    void (*norm)(const NormOp&, const Step&, Worker&);
    void (*add)(const AddOp&, const Step&, Worker&);
    void (*gated)(const GatedOp&, const Step&, Worker&);
    void (*rotary_cache)(const RotaryCacheOp&, const Step&, Worker&);
    void (*attention)(const AttentionOp&, const Step&, Worker&);
    void (*all_reduce)(const AllReduceOp&, const Step&, Worker&);
};

}  // namespace octavo
