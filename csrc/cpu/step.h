// One step's geometry, and what a thread of the team is told: shared by all kernels.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace octavo {

// The tokens of a step. Tokens of a sequence are adjacent; sequence s owns rows query_starts[s] .. query_starts[s + 1] - 1, whose last
// row is at position context_lens[s] - 1. Token t's key and value go to slot slots[t] = block id * block_size + offset in the block.
struct Step {
    int tokens = 0;
    int sequences = 0;
    const int64_t* token_ids = nullptr;     // [tokens]
    const float* input = nullptr;           // [tokens, input_width], for programs that begin with rows instead of token ids
    int64_t input_width = 0;
    const int64_t* positions = nullptr;     // [tokens]
    const int64_t* slots = nullptr;         // [tokens]
    const int32_t* query_starts = nullptr;  // [sequences + 1]
    const int32_t* context_lens = nullptr;  // [sequences]
    const int32_t* block_tables = nullptr;  // [sequences, table_stride]
    int64_t table_stride = 0;
    int block_size = 16;
};

class Team;

// What a kernel knows of the thread it runs on. Every kernel is called by all threads of the team at once.
struct Worker {
    int id = 0;     // 0 .. count - 1
    int count = 1;  // threads in the team
    Team* team = nullptr;
    uint8_t* scratch = nullptr;  // this thread's own, 64-byte aligned, scratch_bytes long
    size_t scratch_bytes = 0;
    uint8_t* shared = nullptr;  // the team's, 64-byte aligned: what a kernel writes there lasts to its end
    size_t shared_bytes = 0;
    std::atomic<int>* next_task = nullptr;  // shared, 0 when a kernel starts: hand out tasks with fetch_add

    void barrier() const;  // all threads of the team; what was written before is seen after
};

// The share of thread `id` of `count` things cut into equal runs: [first, last).
struct Span {
    int first, last;
};
static inline __attribute__((always_inline)) Span share_of(int things, int id, int count) {
    return {int(int64_t(things) * id / count), int(int64_t(things) * (id + 1) / count)};
}

}  // namespace octavo
