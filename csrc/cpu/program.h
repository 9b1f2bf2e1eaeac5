// A model's forward pass as a list of operations, recorded once and run for every step: no Python between the first and the last.
//
// Buffers of a recorded program have room for `max_rows` tokens; a step with more is run in pieces of that many, one after the other
// (a token only reads keys and values of tokens before it), which also keeps all activations in the caches.
#pragma once

#include <cstdint>
#include <variant>
#include <vector>

#include "ops.h"
#include "team.h"

namespace octavo {

using Op = std::variant<EmbeddingOp, LinearOp, NormOp, AddOp, GatedOp, RotaryCacheOp, AttentionOp, StageInputOp, AllReduceOp>;

// The cycles that one kind of operation took on the first thread, waiting for the others included.
struct Profile {
    double seconds[std::variant_size_v<Op>] = {};
};

class Program {
  public:
    Program(Team& team, const Kernels& kernels, int max_rows) : team_(team), kernels_(kernels), max_rows_(max_rows) {}

    void append(const Op& op);
    bool has_amx() const { return kernels_.has_amx; }
    // Where the last operation's rows of a piece lie, and where `run` gathers those of the whole step; null: nothing is gathered.
    void set_result(const float* rows, int width) { result_ = rows, result_width_ = width; }

    // Run all operations. `output` [tokens, width] receives the result's rows, where one is set.
    void run(const Step& step, float* output);

    // Time per kind of operation since the last call; measured only after `profile(true)`.
    void set_profiling(bool on) { profiling_ = on; }
    Profile take_profile();

  private:
    struct Piece;
    void run_piece(const Step& step, float* output);
    void work(const Step& step, float* output, Worker& worker);
    void call(const Op& op, const Step& step, Worker& worker) const;

    Team& team_;
    const Kernels& kernels_;
    int max_rows_;
    std::vector<Op> ops_;
    const float* result_ = nullptr;
    int result_width_ = 0;
    size_t scratch_bytes_ = 0;
    size_t shared_group_bytes_ = 0;  // of the widest operand's rows
    std::atomic<int> tasks_[2] = {};
    bool profiling_ = false;
    Profile profile_;
};

}  // namespace octavo
