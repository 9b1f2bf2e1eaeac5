// Row-wise operations outside of products: norms, sums, gated activations. Each thread takes its share of the rows; of one row, which is
// what a single stream has, its share of the columns where they do not depend on each other.
#include "activation.h"
#include "kernels.h"
#include "plane.h"

namespace octavo::OCTAVO_ISA {

void norm(const NormOp& op, const Step& step, Worker& worker) {
    const Span mine = share_of(step.tokens * op.heads, worker.id, worker.count);
    float* normed = reinterpret_cast<float*>(worker.scratch);
    for (int i = mine.first; i < mine.last; i++) {
        const int64_t t = i / op.heads, head = i % op.heads;
        float* output = op.output + t * op.output_stride + head * op.width;
        normalise_row(op.input + t * op.input_stride + head * op.width, op.width, op.norm, op.add ? normed : output);
        if (!op.add) continue;
        for (int c = 0; c < op.width; c += LANES) store_at(output, c, op.width, load_at(output, c, op.width) + load_at(normed, c, op.width));
    }
}

void add(const AddOp& op, const Step& step, Worker& worker) {
    share_plane(step.tokens, op.width, worker, [&](int t, int first, int last) {
        const float* input = op.input + t * op.input_stride;
        float* output = op.output + t * op.output_stride;
        for (int c = first; c < last; c += LANES) store_at(output, c, last, load_at(output, c, last) + load_at(input, c, last));
    });
}

void stage_input(const StageInputOp& op, const Step& step, Worker& worker) {
    share_plane(step.tokens, op.width, worker, [&](int t, int first, int last) {
        const float* input = step.input + t * step.input_width;
        float* output = op.output + t * op.output_stride;
        for (int c = first; c < last; c += LANES) store_at(output, c, last, load_at(input, c, last));
    });
}

void gated(const GatedOp& op, const Step& step, Worker& worker) {
    share_plane(step.tokens, op.width, worker, [&](int t, int first, int last) {
        const float* gate = op.input + t * op.input_stride;
        const float* up = gate + op.width;
        float* output = op.output + t * op.output_stride;
        for (int c = first; c < last; c += LANES) {
            store_at(output, c, last, activate(op.activation, load_at(gate, c, last)) * load_at(up, c, last));
        }
    });
}

}  // namespace octavo::OCTAVO_ISA
