#include "program.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "operand.h"

namespace octavo {

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

void Program::append(const Op& op) {
    if (const LinearOp* linear = std::get_if<LinearOp>(&op)) {
        const PackedWeight& weight = *linear->weight;
        scratch_bytes_ = std::max(scratch_bytes_, linear_scratch_bytes(weight.format, weight.k));
        shared_group_bytes_ = std::max(shared_group_bytes_, operand_group_bytes(weight.format, weight.k));
    } else if (const NormOp* norm = std::get_if<NormOp>(&op)) {
        scratch_bytes_ = std::max(scratch_bytes_, size_t(norm->width) * 4 + 64);
    } else if (const AttentionOp* attention = std::get_if<AttentionOp>(&op)) {
        const LayerCache& cache = attention->cache;
        scratch_bytes_ = std::max(scratch_bytes_, attention_scratch_bytes(attention->heads, cache.kv_heads, cache.head_dim));
    }
    ops_.push_back(op);
}

void Program::run(const Step& step, float* output) {
    if (step.tokens <= max_rows_) {
        run_piece(step, output);
        return;
    }
    std::vector<int32_t> starts, contexts;
    for (int first = 0, sequence = 0; first < step.tokens; first += max_rows_) {
        const int last = std::min(first + max_rows_, step.tokens);
        while (step.query_starts[sequence + 1] <= first) sequence++;
        Step piece = step;
        piece.tokens = last - first;
        if (piece.token_ids) piece.token_ids += first;
        if (piece.input) piece.input += int64_t(first) * piece.input_width;
        piece.positions += first;
        piece.slots += first;
        piece.block_tables += sequence * step.table_stride;
        starts.assign(1, 0);
        contexts.clear();
        for (int s = sequence; s < step.sequences && step.query_starts[s] < last; s++) {
            const int end = std::min(step.query_starts[s + 1], last);
            starts.push_back(end - first);
            // The piece's last row of the sequence sees so much less than the step's last row as it comes before it.
            contexts.push_back(step.context_lens[s] - (step.query_starts[s + 1] - end));
        }
        piece.sequences = int(contexts.size());
        piece.query_starts = starts.data();
        piece.context_lens = contexts.data();
        run_piece(piece, output ? output + int64_t(first) * result_width_ : nullptr);
    }
}

struct Program::Piece {
    Program* program;
    const Step* step;
    float* output;
};

void Program::run_piece(const Step& step, float* output) {
    team_.reserve(scratch_bytes_, shared_group_bytes_ * groups_of(step.tokens));
    tasks_[0] = tasks_[1] = 0;
    Piece piece{this, &step, output};
    team_.run([](void* argument, Worker& worker) {
        const Piece& p = *static_cast<const Piece*>(argument);
        p.program->work(*p.step, p.output, worker);
    }, &piece);
}

void Program::work(const Step& step, float* output, Worker& worker) {
    double before = profiling_ ? now() : 0;
    for (size_t i = 0; i < ops_.size(); i++) {
        // Two counters in turn: while one is handed out from, the other, which all threads have left, is put back to 0.
        worker.next_task = &tasks_[i % 2];
        if (worker.id == 0) tasks_[(i + 1) % 2].store(0, std::memory_order_relaxed);
        call(ops_[i], step, worker);
        if (i + 1 < ops_.size() || output) worker.barrier();
        if (profiling_ && worker.id == 0) {
            const double after = now();
            profile_.seconds[ops_[i].index()] += after - before;
            before = after;
        }
    }
    if (!output || !result_) return;
    const Span mine = share_of(step.tokens, worker.id, worker.count);
    std::memcpy(output + int64_t(mine.first) * result_width_, result_ + int64_t(mine.first) * result_width_,
                size_t(mine.last - mine.first) * size_t(result_width_) * 4);
}

void Program::call(const Op& op, const Step& step, Worker& worker) const {
    switch (op.index()) {
        case 0: kernels_.embedding(*std::get_if<EmbeddingOp>(&op), step, worker); break;
        case 1: kernels_.linear(*std::get_if<LinearOp>(&op), step, worker); break;
        case 2: kernels_.norm(*std::get_if<NormOp>(&op), step, worker); break;
        case 3: kernels_.add(*std::get_if<AddOp>(&op), step, worker); break;
        case 4: kernels_.gated(*std::get_if<GatedOp>(&op), step, worker); break;
        case 5: kernels_.rotary_cache(*std::get_if<RotaryCacheOp>(&op), step, worker); break;
        case 6: kernels_.attention(*std::get_if<AttentionOp>(&op), step, worker); break;
        case 7: kernels_.stage_input(*std::get_if<StageInputOp>(&op), step, worker); break;
        default: kernels_.all_reduce(*std::get_if<AllReduceOp>(&op), step, worker);
    }
}

Profile Program::take_profile() {
    const Profile taken = profile_;
    profile_ = {};
    return taken;
}

}  // namespace octavo
